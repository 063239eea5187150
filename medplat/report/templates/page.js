"use strict";
/* Sorting by a click on a column's head, and filtering by words and by status. */
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort !== undefined ? cell.dataset.sort : cell.textContent.trim();
  };
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) { return; }
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = Array.from(body.rows);
      rows.sort((a, b) => value(a, column).localeCompare(value(b, column), undefined, { numeric: true }));
      if (down) { rows.reverse(); }
      body.append(...rows);
    });
  });
}
for (const tools of document.querySelectorAll(".tools[data-for]")) {
  const table = document.getElementById(tools.dataset.for);
  const words = tools.querySelector("input[type=search]");
  const boxes = Array.from(tools.querySelectorAll("input[type=checkbox]"));
  const shown = tools.querySelector("[data-shown]");
  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const off = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
    let count = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = off.has(row.dataset.status) || !wanted.every((word) => text.includes(word));
      count += row.hidden ? 0 : 1;
    }
    shown.textContent = count + " of " + table.tBodies[0].rows.length + " shown";
  };
  words.addEventListener("input", apply);
  boxes.forEach((box) => box.addEventListener("change", apply));
  tools.hidden = false;
  apply();
}
