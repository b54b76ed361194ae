// A picture that lights up word by word, and boxes that are joined with their words. Such parts come and go, so one
// listener on the document serves them all.
"use strict";

(() => {
  const STEP = 800; // milliseconds of a word

  const press = (button, buttons) => buttons.forEach((other) => other.setAttribute("aria-pressed", other === button));

  /** Light the picture as it was for a word; no word shows it plain. */
  const show = (figure, word) => {
    press(word, figure.querySelectorAll("[data-light]"));
    const light = figure.querySelector(".light");
    light.hidden = !word;
    if (word) light.src = word.dataset.light;
  };

  const stop = (figure) => {
    clearInterval(figure.timer);
    figure.timer = null;
    const play = figure.querySelector(".play");
    play.setAttribute("aria-pressed", "false");
    play.textContent = "Play";
  };

  /** Show one word after the other, and then the plain picture. */
  const start = (figure) => {
    const words = [...figure.querySelectorAll(".spoken:not([hidden]) [data-light]")];
    const play = figure.querySelector(".play");
    let next = 0;
    const step = () => {
      if (!figure.isConnected || next > words.length) return stop(figure);
      show(figure, words[next]);
      next += 1;
    };
    play.setAttribute("aria-pressed", "true");
    play.textContent = "Stop";
    figure.timer = setInterval(step, STEP);
    step();
  };

  const choose = (button) => {
    const answer = button.closest(".answer");
    const figure = answer.querySelector(".looked");
    stop(figure);
    show(figure, null);
    press(button, answer.querySelectorAll(".captions [data-caption]"));
    for (const words of figure.querySelectorAll(".spoken")) words.hidden = words.dataset.caption !== button.dataset.caption;
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button?.closest(".looked, .captions")) return;
    const figure = button.closest(".looked");
    if (button.matches(".play")) figure.timer ? stop(figure) : start(figure);
    else if (button.dataset.light) {
      stop(figure);
      show(figure, button.getAttribute("aria-pressed") === "true" ? null : button);
    } else if (button.dataset.caption) choose(button);
  });

  // A region, its words and its row of the table light up together.
  let joining = null;
  const join = (event) => {
    const part = event.target.closest(".aligned [data-region]");
    const aligned = part?.closest(".aligned") ?? null;
    for (const each of new Set([joining, aligned])) {
      each?.classList.toggle("joining", each === aligned);
      for (const one of each?.querySelectorAll("[data-region]") ?? [])
        one.classList.toggle("joined", each === aligned && one.dataset.region === part.dataset.region);
    }
    joining = aligned;
  };
  for (const name of ["mouseover", "focusin", "focusout", "click"]) document.addEventListener(name, join);
})();
