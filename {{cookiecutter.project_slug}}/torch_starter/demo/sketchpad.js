// A square to draw on. While the user draws, the drawing is sent to `server.answer` whenever the last answer is back.
const canvas = element.querySelector("canvas");
const pen = canvas.getContext("2d");
const answer = element.querySelector(".answer");
const hint = answer.innerHTML;
let isInkWhite = canvas.dataset.ink === "white";
let last = null; // end of the current stroke
let isBlank = true;
let isAsking = false;
let isChanged = false; // since the last request

function clear() {
  pen.fillStyle = isInkWhite ? "black" : "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  Object.assign(pen, { strokeStyle: isInkWhite ? "white" : "black", lineWidth: 20, lineCap: "round", lineJoin: "round" });
  isBlank = true;
  answer.innerHTML = hint;
}

async function ask(request) {
  isChanged = true;
  isBlank = false;
  if (isAsking) return;
  isAsking = true;
  answer.setAttribute("aria-busy", "true");
  try {
    while (isChanged) {
      isChanged = false;
      const html = await request(canvas.toDataURL());
      if (typeof html !== "string") throw new Error("Gradio has no answer");
      if (!isBlank) answer.innerHTML = html;
      request = server.answer;
    }
  } catch {
    answer.textContent = "The page has lost its connection. Is demo.py still running?";
  } finally {
    isAsking = false;
    answer.setAttribute("aria-busy", "false");
  }
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

function draw(event) {
  if (!last) return;
  pen.beginPath();
  pen.moveTo(...last);
  last = place(event);
  pen.lineTo(...last);
  pen.stroke();
  ask(server.answer);
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.isPrimary) return;
  canvas.setPointerCapture(event.pointerId); // the stroke continues outside the square
  last = place(event);
  draw(event);
});
canvas.addEventListener("pointermove", draw);
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (last = null));
element.querySelector(".clear").addEventListener("click", clear);
element.querySelector(".invert").addEventListener("click", (event) => {
  isInkWhite = !isInkWhite;
  event.target.textContent = isInkWhite ? "Black on white" : "White on black";
  pen.globalCompositeOperation = "difference"; // from white: inverts the drawing
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.globalCompositeOperation = "source-over";
  pen.strokeStyle = isInkWhite ? "white" : "black";
  if (!isBlank) ask(server.answer);
});
element.querySelector(".explain").addEventListener("click", () => isBlank || ask(server.explain));
clear();
