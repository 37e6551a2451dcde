"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("table");
  const bodies = [...table.tBodies];
  // By an interpreter of expressions: the page forbids code made from text.
  const options = { ast: true, actions: false, renderer: "svg", defaultStyle: false, mode: "vega-lite" };

  // What is drawn is told by the label of its element or in words beside it: its parts, of which
  // Vega would say that they are a document, are hidden from readers.
  const draw = (element, spec) => {
    const inner = document.createElement("div");
    inner.setAttribute("aria-hidden", "true");
    element.append(inner);
    return vegaEmbed(inner, spec, options);
  };

  const open = (row, wanted) => {
    const body = document.getElementById(`layer-${row}`);
    const details = document.getElementById(`details-${row}`);
    const button = body.querySelector("th button");
    button.setAttribute("aria-expanded", String(wanted));
    details.hidden = !wanted;
    if (!wanted || details.dataset.drawn) return;
    details.dataset.drawn = "yes";
    for (const element of details.querySelectorAll(".spectrum")) {
      const shown = data.spectra[row][Number(element.dataset.spectrum)];
      const ranks = shown.ranks.split(" ").map(Number);
      const values = shown.values.split(" ").map((text, i) => ({ rank: ranks[i], value: Number(text) }));
      const marks = shown.marks.map(([rank, text, kind], line) => ({ rank, text, kind, line }));
      draw(element, { ...data.spectrum, datasets: { values, marks } });
    }
    for (const element of details.querySelectorAll(".scores")) {
      const values = data.scores[row].map(([share, score]) => ({ share, score }));
      draw(element, { ...data.score, datasets: { values } });
    }
  };

  const go = (row) => {
    const body = document.getElementById(`layer-${row}`);
    if (!body) return;
    clear();
    open(row, true);
    body.scrollIntoView({ block: "center" });
    body.querySelector("th button").focus({ preventScroll: true });
  };

  for (const [name, spec] of Object.entries(data.charts)) {
    draw(document.getElementById(name), spec).then(({ view }) => {
      view.addEventListener("click", (_, item) => {
        const row = item && item.datum && item.datum.row;
        if (row !== undefined && row < bodies.length) go(row);
      });
    });
  }

  for (const body of bodies) {
    const row = Number(body.dataset.row);
    const button = body.querySelector("th button");
    button.addEventListener("click", () => open(row, button.getAttribute("aria-expanded") !== "true"));
  }
  for (const link of document.querySelectorAll('.hints a')) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      go(Number(link.hash.replace("#layer-", "")));
    });
  }

  const heads = [...table.tHead.rows[0].cells];
  const sorter = document.getElementById("sort");
  const value = (body, column) => {
    const cell = body.rows[0].cells[column];
    return cell.dataset.value ?? cell.textContent;
  };
  const sort = (column, direction) => {
    const numeric = heads[column].classList.contains("number") || column === 0;
    const compare = (a, b) => {
      const left = value(a, column), right = value(b, column);
      // What is not known comes last, whichever way the others go.
      if (left === "" || right === "") return (left === "") - (right === "");
      const order = numeric ? Number(left) - Number(right) : left.localeCompare(right);
      return direction * order || Number(a.dataset.row) - Number(b.dataset.row);
    };
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    sorter.value = String(column);
    table.append(...bodies.toSorted(compare));
  };
  // The first press of a column of numbers puts the largest on top, where one looks for them.
  const first = (column) => (heads[column].classList.contains("number") ? -1 : 1);
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sort(column, now === null ? first(column) : now === "ascending" ? -1 : 1);
    });
  });
  sorter.addEventListener("change", () => sort(Number(sorter.value), first(Number(sorter.value))));

  const find = document.getElementById("find"), show = document.getElementById("show");
  const texts = new Map(bodies.map((body) => [body, body.rows[0].textContent.toLowerCase()]));
  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const body of bodies) {
      const fits = words.every((word) => texts.get(body).includes(word));
      body.hidden = !(fits && (!show.value || body.classList.contains(show.value)));
      count += body.hidden ? 0 : 1;
    }
    const all = bodies.length;
    document.getElementById("shown").value = count === all ? `${all} layers` : `${count} of ${all} layers`;
    document.getElementById("none").hidden = count > 0;
  };
  const clear = () => {
    find.value = show.value = "";
    filter();
  };
  find.addEventListener("input", filter);
  show.addEventListener("change", filter);
  document.querySelector(".filter").addEventListener("submit", (event) => event.preventDefault());
})();
