// What axe-core finds in the theme: the search dialog has no name, and code and tables that are wider than the screen
// cannot be scrolled by keyboard.
function makeReachable() {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  for (const box of document.querySelectorAll(".md-typeset pre > code, .md-typeset__scrollwrap")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
window.addEventListener("load", makeReachable);
window.addEventListener("resize", makeReachable);
