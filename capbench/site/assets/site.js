// Tables that are sorted by a click on a heading and filtered by what their columns hold.
"use strict";

(() => {
  const text = (cell) => cell.textContent.trim();
  const key = (cell) => cell.dataset.key ?? text(cell);
  const language = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  function number(cell) {
    const value = parseFloat(text(cell).replaceAll(",", ""));
    return Number.isNaN(value) ? null : value;
  }

  // Rows by a column, those without a number last in either direction.
  function sorted(rows, column, numeric, sign) {
    const keyed = rows.map((row) => [numeric ? number(row.cells[column]) : text(row.cells[column]), row]);
    const compare = numeric ? (a, b) => a - b : language.compare;
    keyed.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b)));
    return keyed.map(([, row]) => row);
  }

  function sortable(table) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      const numeric = "number" in heading.dataset || heading.style.textAlign === "right";
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      heading.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const [first, second] = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
        const next = heading.getAttribute("aria-sort") === first ? second : first;
        headings.forEach((other) => other.setAttribute("aria-sort", "none"));
        heading.setAttribute("aria-sort", next);
        table.tBodies[0].append(...sorted([...table.tBodies[0].rows], column, numeric, next === "ascending" ? 1 : -1));
      });
    });
  }

  // The rows of several tables, with their cells by the names of their columns.
  function rowsOf(tables) {
    return tables.flatMap((table) => {
      const names = [...table.tHead.rows[0].cells].map(text);
      return [...table.tBodies[0].rows].map((row) => ({
        row,
        cells: Object.fromEntries(names.map((name, column) => [name, row.cells[column]])),
        words: row.textContent.toLowerCase(),
      }));
    });
  }

  function control(name, element, wanted) {
    const label = document.createElement("label");
    label.append(name, element);
    element.value = wanted.get(name) ?? "";
    return label;
  }

  function choice(name, rows) {
    const select = document.createElement("select");
    const values = new Set(rows.map(({ cells }) => (cells[name] ? key(cells[name]) : "")));
    values.delete("");
    select.append(new Option("all", ""), ...[...values].sort(language.compare).map((value) => new Option(value, value)));
    return select;
  }

  // Fields that filter tables; what they hold is kept in the address, so that it can be passed on.
  function filterable(form) {
    const tables = [...document.querySelectorAll(`table.${form.dataset.tables}`)];
    const rows = rowsOf(tables);
    const wanted = new URLSearchParams(location.hash.slice(1));
    const choices = form.dataset.columns.split("|").map((name) => [name, choice(name, rows)]);
    const search = document.createElement("input");
    search.type = "search";
    form.append(...choices.map(([name, select]) => control(name, select, wanted)), control("words", search, wanted));

    function apply(changed) {
      const active = choices.filter(([, select]) => select.value);
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const { row, cells, words: all } of rows) {
        const chosen = active.every(([name, { value }]) => cells[name] && key(cells[name]) === value);
        row.hidden = !(chosen && words.every((word) => all.includes(word)));
        shown += !row.hidden;
      }
      for (const table of tables) {
        const section = table.closest("section");
        if (section) section.hidden = ![...table.tBodies[0].rows].some((row) => !row.hidden);
      }
      form.nextElementSibling.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
      if (!changed) return;
      const held = [...active, ["words", search]].filter(([, { value }]) => value).map(([name, { value }]) => [name, value]);
      history.replaceState(null, "", `#${new URLSearchParams(held)}`);
    }
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  document.querySelectorAll("form[data-tables]").forEach(filterable);
  document.querySelectorAll("table.sortable").forEach(sortable);
  // Of the pages that are markdown, the tables with a column of numbers, unless rows belong to the one above them.
  document.querySelectorAll(".md-typeset table:not([class])").forEach((table) => {
    const numbers = [...(table.tHead?.rows[0].cells ?? [])].some((cell) => cell.style.textAlign === "right");
    const rows = [...(table.tBodies[0]?.rows ?? [])];
    if (numbers && rows.length > 1 && rows.every((row) => text(row.cells[0]))) sortable(table);
  });

  // Paper has no folds.
  addEventListener("beforeprint", () => document.querySelectorAll(".md-typeset details").forEach((fold) => (fold.open = true)));

  // What the theme leaves out for those who do not see the page or use no mouse.
  document.querySelector(".md-search")?.setAttribute("aria-label", "search");
  addEventListener("load", () => {
    document.querySelectorAll(".md-typeset__scrollwrap, pre > code").forEach((part) => part.setAttribute("tabindex", "0"));
  });
})();
