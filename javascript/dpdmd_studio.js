// What the pages need beyond gradio: asking again while runs go on, choosing a run, copying a path.
// Plain script without dependencies; also works inside a WebUI's tab.
(function () {
  "use strict";
  var BUSY_MS = 2000, IDLE_MS = 10000;
  var last = 0, asking = false, away = false, focused = "", shown = false;

  function find(id) { return document.getElementById(id); }

  function visible(element) {
    return element !== null && element.offsetParent !== null && !document.hidden;
  }

  function offline(text) {
    var place = find("dpdmd-offline");
    if (place && place.textContent !== text) { place.textContent = text; }
  }

  // A small request goes first: while the server is away, gradio would show an error each time.
  function refresh() {
    asking = true;
    fetch(window.location.pathname, { method: "HEAD", cache: "no-store" })
      .then(function (answer) {
        if (answer.status === 401) { throw new Error("token"); }
        away = false;
        offline("");
        var button = find("dpdmd-refresh");
        if (button) { button.click(); }
      })
      .catch(function () {
        away = true;
        offline("The server does not answer. Runs go on without it; this page will go on, too.");
      })
      .finally(function () { asking = false; last = Date.now(); });
  }

  // The list is drawn anew while a run goes on; whoever went there by keyboard stays there.
  function keepFocus() {
    if (!focused || document.activeElement !== document.body) { return; }
    var buttons = document.querySelectorAll(".dp-job");
    for (var i = 0; i < buttons.length; i++) {
      if (buttons[i].dataset.job === focused) { buttons[i].focus({ preventScroll: true }); }
    }
  }

  function tick() {
    keepFocus();
    watchForm();
    var live = find("dpdmd-live");
    // A1111 cannot take many requests in the moment when it comes back.
    var pause = !away && live && live.dataset.live === "1" ? BUSY_MS : IDLE_MS;
    if (!asking && visible(find("dpdmd-runs")) && Date.now() - last >= pause) { refresh(); }
  }

  function choose(id) {
    var field = document.querySelector("#dpdmd-selected textarea, #dpdmd-selected input");
    if (!field) { return; }
    write(field, id);
    // gradio takes the field's value over in its own time
    window.setTimeout(function () {
      var button = find("dpdmd-refresh");
      if (button) { button.click(); }
    }, 60);
  }

  function write(field, text) {
    var prototype = field.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(prototype.prototype, "value").set.call(field, text);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  // Inside a WebUI: what calls a LoRA goes behind the prompt of txt2img.
  function insert(button) {
    var field = document.querySelector("#txt2img_prompt textarea"), tag = button.dataset.insert;
    if (!field) { return; }
    var text = field.value.trim();
    if (text.indexOf(tag) < 0) { write(field, text ? text + " " + tag : tag); }
    if (typeof window.switch_to_txt2img === "function") { window.switch_to_txt2img(); }
  }

  // The header's checkpoint into the form of a WebUI's tab: at a click beside it, and when the tab
  // is opened after it has changed.
  function follow(id) {
    var button = find(id);
    if (button) { button.click(); }
  }

  function distil() {
    var tabs = document.querySelectorAll("#tabs > .tab-nav button, #tabs > div > button");
    for (var i = 0; i < tabs.length; i++) {
      if (tabs[i].textContent.trim() === "DP-DMD") { tabs[i].click(); }
    }
    var pages = document.querySelectorAll("#dpdmd-tabs button");
    for (var j = 0; j < pages.length; j++) {
      if (pages[j].textContent.trim() === "Distil") { pages[j].click(); break; }
    }
    window.setTimeout(function () { follow("dpdmd-take"); }, 200);
  }

  function offerDistil() {
    var place = find("setting_sd_model_checkpoint");
    if (!place || find("dpdmd-distil-this") || !find("dpdmd-take")) { return; }
    var button = document.createElement("button");
    button.id = "dpdmd-distil-this";
    button.type = "button";
    var like = document.querySelector("#quicksettings button.tool"); // gradio marks its own classes
    button.className = like ? like.className : "lg secondary gradio-button tool";
    button.textContent = "Distil";
    button.title = "Distil this checkpoint: make a few-step LoRA of it (tab DP-DMD)";
    button.addEventListener("click", distil);
    place.insertAdjacentElement("afterend", button);
  }

  function watchForm() {
    offerDistil();
    var now = visible(find("dpdmd-checkpoint"));
    if (now && !shown && find("setting_sd_model_checkpoint")) { follow("dpdmd-follow"); }
    shown = now;
  }

  function copy(button) {
    var text = button.dataset.copy;
    function done() {
      button.textContent = "Copied";
      window.setTimeout(function () { button.textContent = "Copy"; }, 1500);
    }
    if (navigator.clipboard && window.isSecureContext) {
      navigator.clipboard.writeText(text).then(done);
      return;
    }
    var area = document.createElement("textarea");
    area.value = text;
    area.style.position = "fixed";
    document.body.appendChild(area);
    area.select();
    if (document.execCommand("copy")) { done(); }
    area.remove();
    button.focus();
  }

  document.addEventListener("click", function (event) {
    var target = event.target instanceof Element ? event.target : null;
    var job = target && target.closest(".dp-job");
    if (job) { choose(job.dataset.job); return; }
    var button = target && target.closest("[data-copy]");
    if (button) { copy(button); return; }
    button = target && target.closest("[data-insert]");
    if (button) { insert(button); }
  });
  document.addEventListener("focusin", function (event) {
    var job = event.target instanceof Element ? event.target.closest(".dp-job") : null;
    focused = job ? job.dataset.job : "";
  });
  document.addEventListener("pointerdown", function () { focused = ""; });
  document.addEventListener("visibilitychange", tick);
  window.setInterval(tick, 500);
})();
