"""Looks and behaviour of the page of explanations.

Blue and a straight line under a word speak for, orange and a wavy line against; thickness, and bold type at the
strongest, say how much, so that nothing hangs on colour. Which method is shown is a matter of CSS alone; sorting,
filtering and links need the script.
"""

LETTERS = "abcdefgh"
"""Class names of methods are one letter, their levels `p1` to `p3` for and `n1` to `n3` against: pages stay small."""

FOR_SHADES = ("#d6e8f7", "#93c4ea", "#4a9fdc")
AGAINST_SHADES = ("#fde3c4", "#f9bd78", "#ee8f2b")
FOR, AGAINST = "#0072B2", "#C45100"

STYLE = """
fieldset { border: 1px solid #8888; border-radius: .4rem; margin: 0 0 .6rem 0; padding: .3rem .8rem .5rem; }
fieldset label { margin-right: 1rem; white-space: nowrap; }
legend { font-weight: 600; padding: 0 .3rem; }
select, button { font: inherit; max-width: 100%; }
#controls label { display: inline-block; margin: .2rem 1rem .2rem 0; }
.choice { position: sticky; top: 0; z-index: 1; background: Canvas; padding-top: .3rem; }
.choice fieldset { margin: 0; }
article { border: 1px solid #8888; border-radius: .4rem; margin: 1rem 0; padding: .2rem 1rem .8rem;
  content-visibility: auto; contain-intrinsic-size: auto 22rem; scroll-margin-top: 5rem; }
article h3 { margin: .6rem 0 .2rem; font-size: 1.05rem; }
.verdict { margin: .2rem 0; }
.wrong { font-weight: 700; border: 2px solid currentColor; border-radius: .3rem; padding: 0 .35rem; }
.muted { opacity: .8; font-size: .88rem; }
.reading { margin: .6rem 0; } .reading ul { margin: .2rem 0; padding-left: 1.2rem; }
.reading h4 { margin: .4rem 0 .1rem; font-size: .95rem; }
.map { display: flex; height: 2.6rem; margin: .5rem 0 0; border: 1px solid #8888; background: #fff; }
.map i { flex: 1; }
.map.evidence { height: .55rem; margin: 0; border-top: 0; }
.map.evidence .e { background: #444; }
.words { white-space: pre-wrap; font-size: .95rem; line-height: 1.75; max-height: 34rem; overflow-y: auto;
  border-top: 1px solid #8888; padding: .5rem .2rem; }
.words:focus { outline: 2px solid; }
.words b.e, .key b.e { font-weight: 700; color: #fff; background: #444; padding: 0 .2rem; border-radius: .15rem; }
.words .gap { display: block; font-style: italic; opacity: .8; margin: .4rem 0; }
.words sup { font-size: .68rem; font-weight: 700; border: 1px solid; border-radius: .2rem; padding: 0 .15rem;
  margin: 0 .15rem; }
.key span { padding: .05rem .25rem; margin-right: .15rem; }
details > summary { cursor: pointer; padding: .25rem 0; }
td i.bar { display: inline-block; width: 3.2rem; height: .8rem; vertical-align: -.1rem; margin-left: .4rem;
  border: 1px solid #8888; background-color: #fff; }
@media (max-width: 40rem) { article { padding: .1rem .6rem .6rem; } .choice { position: static; } }
@media print { .choice, #controls { display: none; } .words { max-height: none; } article { break-inside: auto; } }
"""


def method_style(num_methods: int) -> str:
    """Rules that show one method's levels and readings while its choice, `#m<letter>`, is on; `l` is the legend's."""
    rules = []
    for letter in LETTERS[:num_methods]:
        on = f"body:has(#m{letter}:checked)"
        rules.append(f"body:has(.pick:checked):not(:has(#m{letter}:checked)) .only-{letter} {{ display: none; }}")
        rules += [
            f"{on} {place}{letter}{sign}{level} {{ {rule} }}"
            for sign in "pn"
            for level in (1, 2, 3)
            for place, rule in ((".words .", _mark(sign, level)), ("i.", _bar(sign, level)))
        ]
    rules += [f".key .l{sign}{level} {{ {_mark(sign, level)} }}" for sign in "pn" for level in (1, 2, 3)]
    return "\n".join(rules) + "\n"


def _mark(sign: str, level: int) -> str:
    shade, line, color = (FOR_SHADES, "solid", FOR) if sign == "p" else (AGAINST_SHADES, "wavy", AGAINST)
    bold = " font-weight: 700;" if level == 3 else ""
    return (
        f"background: {shade[level - 1]}; color: #000; text-decoration: underline {line} {color} {level}px; "
        f"text-underline-offset: .2em;{bold}"
    )


def _bar(sign: str, level: int) -> str:
    """A bar from the middle, up for and down against."""
    top, bottom = (50 - 16 * level, 50) if sign == "p" else (50, 50 + 16 * level)
    color = FOR if sign == "p" else AGAINST
    return (
        f"background-image: linear-gradient(to bottom, transparent {top}%, {color} {top}% {bottom}%, "
        f"transparent {bottom}%);"
    )


SCRIPT = """
"use strict";
(() => {
  const list = document.getElementById("documents");
  const controls = document.getElementById("controls");
  if (!list || !controls) return;
  const articles = Array.from(list.children);
  const sort = document.getElementById("sort");
  const label = document.getElementById("label");
  const wrong = document.getElementById("wrong");
  const count = document.getElementById("count");
  const picks = Array.from(document.querySelectorAll(".pick"));
  const orders = {
    order: (a, b) => a.dataset.place - b.dataset.place,
    error: (a, b) => b.dataset.error - a.dataset.error,
    confident: (a, b) => b.dataset.confidence - a.dataset.confidence,
    unsure: (a, b) => a.dataset.confidence - b.dataset.confidence,
  };
  const choose = (select, value) => {
    if (Array.from(select.options).some((option) => option.value === value)) select.value = value;
  };

  function apply() {
    const compare = orders[sort.value] || orders.order;
    const sorted = articles.slice().sort((a, b) => compare(a, b) || orders.order(a, b));
    list.append(...sorted);
    let shown = 0;
    for (const article of articles) {
      const fits = (!label.value || article.dataset.label === label.value)
        && (!wrong.checked || article.dataset.wrong === "1");
      article.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown + " of " + articles.length + " documents";
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
    const open = parts.get("open");
    const article = open !== null && articles.find((entry) => entry.dataset.place === open);
    if (article) {
      for (const part of article.querySelectorAll("details")) part.open = true;
      article.scrollIntoView();
    }
  }

  for (const input of [sort, label, wrong]) input.addEventListener("change", () => { apply(); remember(); });
  for (const input of picks) input.addEventListener("change", remember);
  addEventListener("hashchange", recall);
  controls.hidden = false;
  recall();
})();
"""
