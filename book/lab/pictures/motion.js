// What moves the pictures of motion.py. A picture is a function of its sliders: numbers to colour, words to show.
((id, data) => {
  const { range, tensorProduct, factorOfTensorPoly1, factorOfTensorPoly2 } = tensorpoly;

  /** The rank of a row laid out on a square grid, which is one or two: with rank one all 2 x 2 minors vanish. */
  function rank(row) {
    const [q, pairs] = [Math.sqrt(row.length), []];
    for (const i of range(q)) for (const j of range(i)) pairs.push([i, j]);
    const minors = pairs.flatMap(([i, j]) =>
      pairs.map(([k, l]) => row[i * q + k] * row[j * q + l] - row[i * q + l] * row[j * q + k]));
    return minors.some((minor) => Math.abs(minor) > 1e-9) ? 2 : 1;
  }

  const PICTURES = {
    leaves(values) {
      const [first, second] = [values.slice(0, values.length / 2), values.slice(values.length / 2)];
      const product = tensorProduct([first, second]);
      return { parts: { first, second, grid: product, row: product }, words: {} };
    },

    routing([product, ofFirst, ofSecond]) {
      const shares = (...weights) => weights.map((weight) => [weight, 1 - weight]);
      const leaves = data.leaves.map((experts) => experts.map((leaf) => [leaf])); // of one row
      const dim = leaves[0][0][0].length ** 2;
      const [one] = factorOfTensorPoly1(leaves, shares(product), dim);
      const [two] = factorOfTensorPoly2(leaves, shares(ofFirst, ofSecond), dim);
      return { parts: { one, two }, words: { one: `rank ${rank(one)}`, two: `rank ${rank(two)}` } };
    },

    film([frame]) {
      const step = `step ${data.steps[frame]}`;
      return { parts: { weights: data.frames[frame].flat() }, words: { step }, sliders: [step] };
    },
  };

  const picture = document.getElementById(id);
  const $ = (selector) => picture.querySelector(selector);
  const sliders = [...picture.querySelectorAll("input")];

  function draw() {
    const { parts, words, sliders: texts } = PICTURES[data.kind](sliders.map((slider) => slider.valueAsNumber));
    for (const [name, values] of Object.entries(parts)) {
      const cells = $(`[data-part=${name}]`).querySelectorAll("rect");
      values.forEach((value, i) => {
        cells[i].dataset.value = value;
        cells[i].setAttribute("class", value < 0 ? "minus" : "plus");
        cells[i].setAttribute("fill-opacity", Math.min(1, Math.abs(value) / (data.peak ?? 1)));
      });
    }
    for (const [name, text] of Object.entries(words)) $(`[data-words=${name}]`).textContent = text;
    sliders.forEach((slider, i) => {
      const text = texts?.[i] ?? slider.valueAsNumber.toFixed(1);
      slider.setAttribute("aria-valuetext", text);
      slider.nextElementSibling.textContent = text;
    });
  }

  /** Plays a film to its end; a second press stops it. */
  function play(button, slider) {
    let timer = null;
    const stop = () => {
      timer = clearInterval(timer);
      button.textContent = "Play";
    };
    button.addEventListener("click", () => {
      if (timer) return stop();
      if (slider.value === slider.max) slider.value = 0;
      button.textContent = "Stop";
      draw();
      timer = setInterval(() => {
        slider.valueAsNumber += 1;
        draw();
        if (slider.value === slider.max) stop();
      }, 150);
    });
  }

  $(".controls").hidden = false;
  $(".controls").addEventListener("input", draw);
  if ($("button")) play($("button"), sliders[0]);
  draw();
})
