"use strict";
// A column's head sorts its table: numbers by value, everything else by the alphabet.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const isNumber = head.classList.contains("number");
      const key = (row) => {
        const cell = row.cells[column];
        return isNumber ? Number(cell.dataset.value ?? cell.textContent) : cell.textContent;
      };
      const compare = isNumber ? (a, b) => a - b : (a, b) => a.localeCompare(b);
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)) * (rising ? 1 : -1));
      body.append(...rows);
    });
  });
}
