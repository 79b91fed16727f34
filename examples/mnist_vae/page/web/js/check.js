// A classic script, so that it runs where module scripts cannot: in old browsers, and from file://.
(function () {
  "use strict";
  function tell(title, text) {
    if (document.documentElement.dataset.state) {
      return; // The first thing that went wrong is the cause of the others.
    }
    var notice = document.getElementById("notice");
    var strong = document.createElement("strong");
    strong.textContent = title;
    notice.replaceChildren(strong, " " + text);
    notice.hidden = false;
    document.documentElement.dataset.state = "stopped";
  }

  // A script that does not load, or that one of its imports keeps from loading, is an event on its element alone.
  window.addEventListener(
    "error",
    function (event) {
      if (event.target instanceof HTMLScriptElement) {
        tell("A part of the page is missing.", "Reload to try again; if that does not help, its folder must be built anew.");
      }
    },
    true
  );

  if (location.protocol === "file:") {
    tell(
      "This page must come from a web server.",
      "A browser does not let a page opened as a file load its own parts. In the page's folder, run " +
        "“python -m http.server” and open http://localhost:8000, or run “python examples/mnist_vae demo”."
    );
  } else if (!("noModule" in HTMLScriptElement.prototype)) {
    tell("This browser is too old for the page.", "Any browser of the last few years will do.");
  }
})();
