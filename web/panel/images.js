/** The newest previews of a run, and any of them large. */

import { button, make, mark, show, write } from "./dom.js";
import { t } from "./language.js";
import { whole } from "./words.js";

const TEACHER = "teacher";
const FEW_STEPS = "few-steps.png"; // of a check

/** What a preview shows, in words. */
function caption(preview) {
  if (preview.name === FEW_STEPS) return t("A few steps without guidance");
  return isTeacher(preview) ? t("Teacher") : t("Student, update {step}", { step: whole(preview.step) });
}

const isTeacher = (preview) => preview.name.startsWith(TEACHER);

export class Images {
  /** @param {(name: string) => string} address the address of a preview by its name */
  constructor(address) {
    this.address = address;
    this.previews = [];
    this.student = new Sheet(() => this.enlarge(this.student.preview));
    this.teacher = new Sheet(() => this.enlarge(this.teacher.preview));
    const note = t("Same prompts and seeds in each; one column is one seed. Click to enlarge.");
    this.element = make(
      "section",
      { class: "dpdmd-section" },
      make("h3", {}, t("Previews")),
      make("p", { class: "dpdmd-soft" }, note),
      make("div", { class: "dpdmd-sheets" }, this.teacher.element, this.student.element),
    );
    this.large = new Large(address);
  }

  /** @param {{name: string, step: number}[]} previews newest last */
  update(previews) {
    const students = previews.filter((preview) => !isTeacher(preview));
    const teacher = previews.find(isTeacher);
    this.previews = teacher ? [teacher, ...students] : students;
    this.student.update(students.at(-1), this.address);
    this.teacher.update(teacher, this.address);
    show(this.element, this.previews.length > 0);
    this.large.update(this.previews);
  }

  enlarge(preview) {
    if (preview) this.large.open(preview);
  }

  close() {
    if (this.large.dialog.open) this.large.dialog.close();
  }
}

class Sheet {
  constructor(enlarge) {
    this.image = make("img", { class: "dpdmd-sheet", alt: "" });
    this.words = make("figcaption");
    this.button = make("button", { type: "button", class: "dpdmd-sheet-button", onclick: enlarge });
    this.button.append(this.image);
    this.element = make("figure", { class: "dpdmd-figure" }, this.button, this.words);
    this.preview = null;
  }

  /** The old image stays until the new one can be drawn, so that nothing flickers. */
  async update(preview, address) {
    show(this.element, Boolean(preview));
    if (!preview || this.preview?.name === preview.name) return;
    this.preview = preview;
    const next = new Image();
    next.src = address(preview.name);
    try {
      await next.decode();
    } catch {
      if (this.preview === preview) this.preview = null; // tried again at the next look
      return;
    }
    if (this.preview !== preview) return;
    this.image.src = next.src;
    this.image.width = next.naturalWidth;
    this.image.height = next.naturalHeight;
    mark(this.button, "aria-label", t("Enlarge: {what}", { what: caption(preview) }));
    write(this.words, caption(preview));
  }
}

/** One preview over the whole window; arrow keys go through the others. */
class Large {
  constructor(address) {
    this.address = address;
    this.previews = [];
    this.name = "";
    this.image = make("img", { alt: "" });
    this.words = make("p", { class: "dpdmd-large-words", role: "status" });
    this.before = button("‹", () => this.go(-1), { "aria-label": t("The preview before") });
    this.after = button("›", () => this.go(1), { "aria-label": t("The next preview") });
    const close = button(t("Close"), () => this.dialog.close());
    const row = make("div", { class: "dpdmd-large-row" }, this.before, this.words, this.after, close);
    const attributes = { class: "dpdmd dpdmd-large", "aria-label": t("Preview") };
    this.dialog = make("dialog", attributes, this.image, row);
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
    this.dialog.addEventListener("close", () => this.dialog.remove());
  }

  update(previews) {
    this.previews = previews;
    if (this.dialog.open) this.draw();
  }

  open(preview) {
    this.name = preview.name;
    document.body.append(this.dialog);
    mark(this.dialog, "data-theme", document.querySelector(".dpdmd-panel")?.dataset.theme);
    this.draw();
    this.dialog.showModal();
  }

  go(by) {
    const next = this.previews[this.place() + by];
    if (!next) return;
    this.name = next.name;
    this.draw();
  }

  place() {
    return this.previews.findIndex((preview) => preview.name === this.name);
  }

  draw() {
    const place = this.place();
    const preview = this.previews[place];
    if (!preview) return;
    mark(this.image, "src", this.address(preview.name));
    mark(this.image, "alt", caption(preview));
    const which = { what: caption(preview), place: place + 1, count: this.previews.length };
    write(this.words, t("{what} ({place} of {count})", which));
    this.before.disabled = place === 0;
    this.after.disabled = place === this.previews.length - 1;
  }

  key(event) {
    event.stopPropagation(); // the host has keys of its own
    if (event.key === "ArrowLeft") this.go(-1);
    if (event.key === "ArrowRight") this.go(1);
  }
}
