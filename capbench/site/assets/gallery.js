// Galleries: the entries that have a word, and two runs side by side.
"use strict";

(() => {
  const escaped = (word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

  /** Show the entries whose captions have a word, which may be the beginning of one. */
  function filtered(form) {
    const status = form.nextElementSibling;
    const entries = [...document.querySelectorAll("article.entry")];
    const words = entries.map((entry) => entry.textContent.toLowerCase());
    const apply = () => {
      const word = new RegExp(`(?<![\\p{L}\\p{N}])${escaped(form.elements.word.value.trim().toLowerCase())}`, "u");
      entries.forEach((entry, place) => (entry.hidden = !word.test(words[place])));
      for (const section of document.querySelectorAll("section.gallery"))
        section.hidden = !section.querySelector(".entry:not([hidden])");
      const shown = entries.filter((entry) => !entry.hidden).length;
      status.textContent = `${shown} of ${entries.length} entries`;
    };
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  /** What runs show, by name; a run's file hands it over when it has been loaded. */
  const loaded = new Map();
  window.capbenchGallery = ({ name, parts }) => loaded.get(name).done(parts);

  function partsOf(name) {
    if (!loaded.has(name)) {
      const entry = {};
      entry.parts = new Promise((done) => (entry.done = done));
      loaded.set(name, entry);
      const script = document.createElement("script");
      script.src = `${name}.js`;
      document.head.append(script);
    }
    return loaded.get(name).parts;
  }

  function besides(form) {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const selects = ["a", "b"].map((side) => form.elements[side]);
    for (const select of selects)
      if ([...select.options].some(({ value }) => value === wanted.get(select.name))) select.value = wanted.get(select.name);
    const [left, right] = selects;
    if (left.value === right.value) right.selectedIndex = left.selectedIndex ? 0 : 1;
    const fill = async (select) => {
      const name = select.value;
      const parts = await partsOf(name);
      if (select.value !== name) return; // another one has been chosen meanwhile
      for (const cell of document.querySelectorAll(`.pair [data-side="${select.name}"]`))
        cell.innerHTML = parts[cell.parentElement.dataset.key] ?? "<p>This run shows nothing here.</p>";
      form.nextElementSibling.textContent = selects.map(({ selectedOptions }) => selectedOptions[0].text).join(" beside ");
    };
    form.addEventListener("change", (event) => {
      fill(event.target);
      history.replaceState(null, "", `#${new URLSearchParams(selects.map(({ name, value }) => [name, value]))}`);
    });
    selects.forEach(fill);
  }

  document.querySelectorAll("form.gallery-filter").forEach(filtered);
  document.querySelectorAll("form.beside").forEach(besides);
})();
