"use strict";
// Tables whose heads are buttons, and one slider for the pictures of all models.

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const status = document.getElementById("sorted");

  function compare(column, numeric, descending) {
    return (first, second) => {
      const [a, b] = [first, second].map((row) => row.cells[column].dataset.value);
      if (a === "" || b === "") return (a === "") - (b === ""); // empty cells come last either way
      const order = numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
      return descending ? -order : order;
    };
  }

  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      const rows = [...body.rows].sort(compare(column, head.dataset.kind === "number", descending));
      body.append(...rows);
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const name = head.querySelector("button").firstChild.textContent;
      status.textContent = `Sorted by ${name}, ${descending ? "descending" : "ascending"}`;
    });
  });
}

function films(slider) {
  const told = document.getElementById("share-told");
  const figures = [...document.querySelectorAll(".films figure")];

  function show() {
    const share = Number(slider.value) / 100;
    told.textContent = `${slider.value} %`;
    slider.setAttribute("aria-valuetext", `${slider.value} percent of the training`);
    for (const figure of figures) {
      const frames = [...figure.querySelectorAll("[data-share]")];
      const reached = frames.filter((frame) => Number(frame.dataset.share) <= share + 1e-9);
      const current = reached.length ? reached[reached.length - 1] : frames[0];
      for (const frame of frames) frame.hidden = frame !== current;
      figure.querySelector(".when").textContent = current.dataset.seen;
    }
  }

  slider.addEventListener("input", show);
  show();
}

for (const image of document.querySelectorAll("img[data-copy]")) {
  image.src = document.getElementById(image.dataset.copy).src;
}
document.querySelectorAll("table.sortable").forEach(sortable);
const slider = document.getElementById("share");
if (slider) films(slider);
