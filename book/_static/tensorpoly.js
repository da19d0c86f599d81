// The mathematics of minitensorpoly, for the page "Try it" and for the pictures that move in the chapters.
"use strict";

/** The mathematics, as pure functions. Vectors are arrays of numbers; the names are the library's. */
window.tensorpoly = (() => {
  const range = (n) => Array.from({ length: n }, (_, i) => i);
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

  /** The smallest integer q with q ** order >= dim, by whole numbers alone: a root would be rounded. */
  function leafSize(dim, order) {
    const power = (q) => range(order).reduce((product) => product * q, 1);
    let q = 1;
    while (power(q) < dim) q += 1;
    return q;
  }

  /** Tensor product of N leaves, flattened; the last leaf varies fastest, as in torch.kron. */
  function tensorProduct(leaves) {
    return leaves.reduce((product, leaf) => product.flatMap((entry) => leaf.map((number) => entry * number)));
  }

  /** sigmoid(logits) divided by its sum over the experts: weights that sum to 1. */
  function normalizedSigmoid(logits) {
    const scores = logits.map((z) => 1 / (1 + Math.exp(-z)));
    const total = sum(scores);
    return scores.map((score) => score / total);
  }

  /** sum over k of weights[k] * vectors[k]. */
  function mix(vectors, weights) {
    return vectors[0].map((_, i) => sum(weights.map((weight, k) => weight * vectors[k][i])));
  }

  /**
   * TensorPoly-I: products of leaves, mixed by one weight for each product.
   * leaves: (order, experts, rank, leaf size); weights: (1, experts). Returns (rank, dim).
   */
  function factorOfTensorPoly1(leaves, weights, dim) {
    return range(leaves[0][0].length).map((i) => {
      const products = range(leaves[0].length).map((k) => tensorProduct(leaves.map((order) => order[k][i])));
      return mix(products, weights[0]).slice(0, dim);
    });
  }

  /**
   * TensorPoly-II: the leaves of each order, mixed by weights of their own, and then multiplied.
   * leaves: (order, experts, rank, leaf size); weights: (order, experts). Returns (rank, dim).
   */
  function factorOfTensorPoly2(leaves, weights, dim) {
    return range(leaves[0][0].length).map((i) => {
      const mixed = leaves.map((order, n) => mix(order.map((expert) => expert[i]), weights[n]));
      return tensorProduct(mixed).slice(0, dim);
    });
  }

  /** Parameters of a layer from dim to dim features, for each method. Poly and MHR have tensorRank skills. */
  function parameters({ dim, rank, order, tensorRank, tasks, heads = 8 }) {
    const matrices = rank * (dim + dim);
    const leaves = order * tensorRank * rank * (leafSize(dim, order) + leafSize(dim, order));
    const routing = (splits) => tasks * splits * tensorRank;
    return {
      lora: { adapter: matrices, routing: 0 },
      tlora: { adapter: leaves, routing: 0 },
      poly: { adapter: tensorRank * matrices, routing: routing(1) },
      mhr: { adapter: tensorRank * matrices, routing: routing(heads) },
      "tensorpoly-1": { adapter: leaves, routing: routing(1) },
      "tensorpoly-2": { adapter: leaves, routing: routing(order) },
    };
  }

  const factors = { mix, factorOfTensorPoly1, factorOfTensorPoly2 };
  return { range, leafSize, tensorProduct, normalizedSigmoid, parameters, ...factors };
})();
