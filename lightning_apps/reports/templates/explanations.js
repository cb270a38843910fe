"use strict";
(() => {
  const [list, sort, label, wrong] = ["documents", "sort", "label", "wrong"].map((id) => document.getElementById(id));
  const articles = [...list.children];
  const picks = [...document.querySelectorAll(".pick")];
  const place = (a, b) => a.dataset.place - b.dataset.place;
  const orders = {
    order: place,
    error: (a, b) => b.dataset.error - a.dataset.error,
    confident: (a, b) => b.dataset.confidence - a.dataset.confidence,
    unsure: (a, b) => a.dataset.confidence - b.dataset.confidence,
  };
  const choose = (select, value) => {
    select.value = value;
    if (select.selectedIndex < 0) select.selectedIndex = 0;
  };

  function apply() {
    const compare = orders[sort.value];
    list.append(...articles.slice().sort((a, b) => compare(a, b) || place(a, b)));
    for (const article of articles) {
      const other = label.value && article.dataset.label !== label.value;
      article.hidden = other || (wrong.checked && article.dataset.wrong !== "1");
    }
    const shown = articles.filter((article) => !article.hidden).length;
    document.getElementById("count").textContent = shown + " of " + articles.length + " documents";
  }

  function remember() {
    const parts = new URLSearchParams();
    if (sort.value !== "order") parts.set("sort", sort.value);
    if (label.value) parts.set("label", label.value);
    if (wrong.checked) parts.set("wrong", "1");
    const pick = picks.findIndex((input) => input.checked);
    if (pick > 0) parts.set("method", picks[pick].value);
    history.replaceState(null, "", "#" + parts);
  }

  function recall() {
    const parts = new URLSearchParams(location.hash.slice(1));
    choose(sort, parts.get("sort") || "order");
    choose(label, parts.get("label") || "");
    wrong.checked = parts.get("wrong") === "1";
    for (const input of picks) if (input.value === parts.get("method")) input.checked = true;
    apply();
    const article = articles.find((entry) => entry.dataset.place === parts.get("open"));
    if (article) {
      for (const part of article.querySelectorAll("details")) part.open = true;
      article.scrollIntoView();
    }
  }

  for (const input of [sort, label, wrong]) input.addEventListener("change", () => { apply(); remember(); });
  for (const input of picks) input.addEventListener("change", remember);
  addEventListener("hashchange", recall);
  document.getElementById("controls").hidden = false;
  recall();
})();
