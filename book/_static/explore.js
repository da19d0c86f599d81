// The page "Try it": drawings of what tensorpoly.js computes. No other page loads this file.
"use strict";

(() => {
  const { range } = tensorpoly;
  const STEPS = {
    dim: [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192],
    rank: [1, 2, 4, 8, 16, 32, 64],
    order: [1, 2, 3, 4, 5, 6],
    tensorRank: [1, 2, 3, 4, 6, 8, 12, 16],
    tasks: [1, 2, 4, 8, 16, 24, 32, 64, 128, 256, 512, 1024],
  };
  const NAMES = {
    lora: "LoRA", tlora: "TLoRA", poly: "Poly", mhr: "MHR",
    "tensorpoly-1": "TensorPoly-I", "tensorpoly-2": "TensorPoly-II",
  };
  const DRAWN = { row: 100, leaf: 24, mixedRow: 64, experts: 4 }; // more would be too small to see
  const FARTHEST = 6; // logits go from -6 to 6

  const $ = (selector) => document.querySelector(selector);
  const count = (n) => n.toLocaleString("en");
  const sliders = Object.fromEntries(Object.keys(STEPS).map((name) => [name, $(`#explore-${name}`)]));
  const chosen = () =>
    Object.fromEntries(Object.entries(sliders).map(([name, s]) => [name, STEPS[name][s.valueAsNumber]]));

  /** A number from -1 to 1 that depends on its place alone: a new leaf leaves the others as they are. */
  function noise(...place) {
    let hash = 7;
    for (const index of place) {
      hash = Math.imul(hash ^ (index + 1), 0x9e3779b1);
      hash = Math.imul(hash ^ (hash >>> 15), 0x85ebca6b);
      hash ^= hash >>> 13;
    }
    return (hash >>> 0) / 2 ** 31 - 1;
  }

  /** Leaves of shape (order, experts, 1, q): one row of a factor. None is near zero, to be seen. */
  function makeLeaves({ dim, order, tensorRank }) {
    const entry = (u) => Math.sign(u) * (0.25 + 0.75 * Math.abs(u));
    const leaf = (n, k) => range(tensorpoly.leafSize(dim, order)).map((i) => entry(noise(n, k, i)));
    return range(order).map((n) => range(tensorRank).map((k) => [leaf(n, k)]));
  }

  // Drawings

  /** Rectangles for numbers, `span` wide each, coloured by sign and size; from `kept` on they are cut off. */
  function cells(values, peak, { span = 1, y = 0, height = 1, kept = Infinity } = {}) {
    const width = Math.min(values.length, kept) * span;
    return `<rect class="ground" y="${y}" width="${width}" height="${height}"/>` + values.map((value, i) => {
      const kind = i >= kept ? "cut" : value < 0 ? "minus" : "plus";
      return `<rect class="${kind}" x="${i * span}" y="${y}" width="${span}" height="${height}"
        fill-opacity="${(Math.abs(value) / peak).toFixed(3)}">
        <title>number ${i + 1}: ${value.toFixed(3)}</title></rect>`;
    }).join("");
  }

  const peakOf = (values) => values.reduce((peak, value) => Math.max(peak, Math.abs(value)), 1e-12);

  /** `width` cells of `total`, faded out where more would follow. */
  function svg(label, width, total, height, content) {
    const kinds = (height > 1 ? "band" : "strip") + (width < total ? " partial" : "");
    return `<svg class="${kinds}" role="img" aria-label="${label}" viewBox="0 0 ${width} ${height}"
      preserveAspectRatio="none" style="width: min(100%, ${width * 16}px)">${content}</svg>`;
  }

  /** A vector as a strip of at most `limit` cells. Every strip has a colour scale of its own. */
  function strip(label, values, limit) {
    const shown = values.slice(0, limit);
    const first = shown.slice(0, 3).map((value) => value.toFixed(2)).join(", ");
    const name = `${label}: ${count(values.length)} numbers, first ${first}`;
    return svg(name, shown.length, values.length, 1, cells(shown, peakOf(values)));
  }

  /** The row before, each entry drawn out over a leaf, and below it their products: the row. */
  function band(before, leaf, dim, isLast) {
    const row = tensorpoly.tensorProduct([before, leaf]);
    const shown = Math.min(row.length, DRAWN.row);
    const parents = before.slice(0, Math.ceil(shown / leaf.length));
    const kept = isLast ? dim : Infinity;
    const upper = cells(parents, peakOf(before), { span: leaf.length, height: 0.7 });
    const lower = cells(row.slice(0, shown), peakOf(row), { y: 0.9, height: 1.3, kept });
    const name = `${count(before.length)} numbers, each times the leaf: ${count(row.length)} numbers`;
    return svg(name, shown, row.length, 2.2, upper + lower);
  }

  function drawGrowth({ dim, order }, leaves) {
    const parts = leaves.map((experts) => experts[0][0]);
    const q = parts[0].length;
    const enough = q ** order;
    $("#explore-leaf-size").innerHTML =
      `${count(q - 1)}<sup>${order}</sup> = ${count((q - 1) ** order)} is too few for ${count(dim)},
       ${count(q)}<sup>${order}</sup> = ${count(enough)} is ${enough === dim ? "just right" : "enough"}:
       a leaf has <strong><var>q</var> = ${count(q)}</strong> numbers.
       So <strong>${order} × ${count(q)} = ${count(order * q)}</strong> numbers make
       a row of ${count(dim)}.`;
    $("#explore-growth").innerHTML = parts.map((leaf, n) => {
      const before = tensorpoly.tensorProduct(parts.slice(0, Math.max(n, 1)));
      const size = q ** (n + 1);
      const drawn = size > DRAWN.row ? `, first ${DRAWN.row}` : "";
      const formula = n ? `${count(q ** n)} × ${q} = ${count(size)}` : count(size);
      return `<div>${n ? "⊗ " : ""}leaf ${n + 1}${strip(`leaf ${n + 1}`, leaf, DRAWN.leaf)}</div>
        <div>${formula} numbers${drawn}
        ${n ? band(before, leaf, dim, n === order - 1) : strip("the row so far", leaf, DRAWN.row)}</div>`;
    }).join("") + `<div class="kept" style="--share: ${(100 * dim) / enough}%">
      ${count(dim)} kept, ${enough === dim ? "none" : count(enough - dim)} cut off</div>`;
  }

  function drawParameters(sizes) {
    const all = Object.entries(tensorpoly.parameters(sizes));
    const longest = Math.max(...all.map(([, { adapter, routing }]) => adapter + routing));
    const bar = (kind, n) => `<span class="${kind}" style="width: ${(100 * n) / longest}%"></span>`;
    $("#explore-parameters tbody").innerHTML = all.map(([method, { adapter, routing }]) =>
      `<tr data-method="${method}"><th scope="row">${NAMES[method]}</th>
       <td>${count(adapter)}</td><td>${count(routing)}</td>
       <td><div class="bar">${bar("adapter", adapter)}${bar("routing", routing)}</div></td></tr>`
    ).join("");
  }

  // Routing: the logits of every task that was looked at, by method, split and expert

  let task = 1;
  const changed = new Map();
  const logit = (...place) => changed.get(`${task}-${place}`) ?? Math.round(8 * noise(task, ...place)) / 2;
  const weightsOf = (method, splits, experts) =>
    range(splits).map((n) => tensorpoly.normalizedSigmoid(range(experts).map((k) => logit(method, n, k))));

  /** A slider for a logit, and the weight that comes of it. */
  function dial(method, n, k) {
    const what = method === 1 ? `product ${k + 1}` : `leaf ${n + 1} of expert ${k + 1}`;
    return `<span class="dial"><input type="range" min="${-FARTHEST}" max="${FARTHEST}" step="0.5"
      value="${logit(method, n, k)}" data-place="${[method, n, k]}" aria-label="logit of ${what}">
      <span class="weight" data-weight="${[method, n, k]}"></span></span>`;
  }

  function drawRouting({ dim, order, tensorRank, tasks }, leaves) {
    task = Math.min(task, tasks);
    const experts = range(Math.min(tensorRank, DRAWN.experts));
    const perLeaf = Math.floor(DRAWN.mixedRow / order);
    const leaf = (n, k) => strip(`leaf ${n + 1} of expert ${k + 1}`, leaves[n][k][0], perLeaf);
    const line = (content) =>
      `<div class="leaves">${range(order).map((n) => `<div>${content(n)}</div>`).join("")}</div>`;
    $("#explore-task").textContent = `Task ${count(task)} of ${count(tasks)}`;
    $("#explore-another").disabled = tasks === 1;
    $("#explore-experts-1").innerHTML = experts.map((k) => {
      const product = tensorpoly.tensorProduct(leaves.map((order) => order[k][0])).slice(0, dim);
      return `<div class="expert">${line((n) => leaf(n, k))}
        ${strip(`product ${k + 1}`, product, DRAWN.mixedRow)}${dial(1, 0, k)}</div>`;
    }).join("");
    $("#explore-experts-2").innerHTML = experts.map((k) =>
      `<div class="expert">${line((n) => leaf(n, k) + dial(2, n, k))}</div>`).join("");
    const products = (n) => `${count(n)} ${n === 1 ? "product" : "products"}`;
    const weights = (splits) => `${splits} × ${tensorRank} weights, for ${products(tensorRank ** splits)}`;
    $("#explore-count-1").textContent = weights(1);
    $("#explore-count-2").textContent = weights(order);
    const [q, shown] = [leaves[0][0][0].length, Math.min(dim, DRAWN.mixedRow)];
    const left = [
      shown < dim && `${shown} of the ${count(dim)} numbers of a row`,
      perLeaf < q && `${perLeaf} of the ${count(q)} numbers of a leaf`,
      experts.length < tensorRank && `${experts.length} of the ${tensorRank} experts`,
    ].filter(Boolean);
    const drawn = `Drawn: the first ${left.join(", ")}. The others count as well.`;
    $("#explore-drawn").textContent = left.length ? drawn : "";
    mixLeaves({ dim, order, tensorRank }, leaves);
  }

  /** What changes with a logit: the weights, the mixed leaves and the rows. */
  function mixLeaves({ dim, order, tensorRank }, leaves) {
    const weights = { 1: weightsOf(1, 1, tensorRank), 2: weightsOf(2, order, tensorRank) };
    document.querySelectorAll("[data-weight]").forEach((shown) => {
      const [method, n, k] = shown.dataset.weight.split(",");
      shown.textContent = weights[method][n][k].toFixed(2);
      shown.style.setProperty("--share", `${100 * weights[method][n][k]}%`);
      shown.previousElementSibling.setAttribute("aria-valuetext", `weight ${shown.textContent}`);
    });
    const mixed = leaves.map((experts, n) => tensorpoly.mix(experts.map((rows) => rows[0]), weights[2][n]));
    $("#explore-mixed").innerHTML = mixed.map((leaf, n) =>
      `<div>${strip(`mixed leaf ${n + 1}`, leaf, Math.floor(DRAWN.mixedRow / order))}</div>`).join("");
    const rows = [tensorpoly.factorOfTensorPoly1(leaves, weights[1], dim)[0],
      tensorpoly.factorOfTensorPoly2(leaves, weights[2], dim)[0]];
    rows.forEach((row, i) => ($(`#explore-row-${i + 1}`).innerHTML = strip("row", row, DRAWN.mixedRow)));
  }

  function draw() {
    const sizes = chosen();
    for (const [name, slider] of Object.entries(sliders)) {
      $(`#explore-${name}-value`).textContent = count(sizes[name]);
      slider.setAttribute("aria-valuetext", count(sizes[name]));
    }
    const leaves = makeLeaves(sizes);
    drawGrowth(sizes, leaves);
    drawParameters(sizes);
    drawRouting(sizes, leaves);
  }

  for (const [name, slider] of Object.entries(sliders)) {
    slider.max = STEPS[name].length - 1;
    slider.addEventListener("input", draw);
  }
  $("#explore-routing").addEventListener("input", ({ target }) => {
    changed.set(`${task}-${target.dataset.place}`, target.valueAsNumber);
    mixLeaves(chosen(), makeLeaves(chosen()));
  });
  $("#explore-another").addEventListener("click", () => {
    task = (task % chosen().tasks) + 1;
    draw();
  });
  document.querySelectorAll("button[data-set]").forEach((button) =>
    button.addEventListener("click", () => {
      const { only, ...sizes } = JSON.parse(button.dataset.set);
      for (const [name, value] of Object.entries(sizes)) sliders[name].value = STEPS[name].indexOf(value);
      draw();
      if (!only) return;
      document.querySelectorAll("[data-place]").forEach(({ dataset }) => {
        const isChosen = dataset.place.endsWith(`,${only - 1}`);
        changed.set(`${task}-${dataset.place}`, isChosen ? FARTHEST : -FARTHEST);
      });
      draw();
    })
  );
  draw();
})();
