"use strict";
// what scrolls sideways can be reached by keyboard
for (const part of document.querySelectorAll(".md-typeset table, .md-typeset pre > code")) part.tabIndex = 0;
