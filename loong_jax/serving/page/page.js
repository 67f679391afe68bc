// The page: asks the server for a video, follows its events, and shows the frames as they come.

const element = (id) => document.getElementById(id);
const form = element("form"), stage = element("stage"), screen = element("screen"), film = element("film");
const NUMBERS = ["seconds", "seed", "temperature", "top_k", "guidance_scale"];
const FILM_FRAMES = 12;
const RECONNECTS = 5;

let model = null; // what the server says of the model
let token = sessionStorage.getItem("token") ?? "";
let current = null; // id of the video that is followed
let videoAddress = null; // of the mp4 that is shown, an object URL

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({ error: `The server answered ${answer.status}.` }));
  const error = new Error(problem.error);
  error.status = answer.status;
  throw error;
}

async function start() {
  try {
    model = await (await ask("api/model")).json();
  } catch (error) {
    element("token-row").hidden = error.status !== 401;
    element("problem").textContent = error.status === 401 && !token ? "" : error.message;
    return;
  }
  element("token-row").hidden = true;
  const { fps, frame_size: size, defaults, limits } = model;
  element("facts").textContent = `${model.name} · ${size}×${size} pixels · ${fps} frames a second`;
  screen.width = screen.height = size;
  element("seconds").max = limits.max_seconds;
  for (const [name, value] of Object.entries(defaults)) {
    // A schedule by latent frame is no number: left empty, it is the server's.
    if (Array.isArray(value)) element(name).placeholder = "by frame";
    else element(name).value = value;
  }
  for (const field of [element("prompt"), element("negative_prompt")]) field.maxLength = limits.max_prompt_length;
}

function say(state, text, left = "") {
  stage.dataset.state = state;
  element("status").textContent = text;
  element("left").textContent = left;
  const isBusy = state === "waiting" || state === "sampling";
  element("go").disabled = isBusy;
  element("stop").disabled = !isBusy;
}

function clearStage() {
  element("problem").textContent = "";
  element("bar").style.width = "0";
  element("player").hidden = element("download").hidden = true;
  element("player").removeAttribute("src");
  if (videoAddress) URL.revokeObjectURL(videoAddress);
  videoAddress = null;
  screen.getContext("2d").clearRect(0, 0, screen.width, screen.height);
  film.hidden = true;
}

async function requestBody() {
  const body = { prompt: element("prompt").value };
  for (const name of NUMBERS) {
    const value = element(name).value;
    if (value !== "" && Number(value) !== model.defaults[name]) body[name] = Number(value); // else the model's own
  }
  const negative = element("negative_prompt").value.trim();
  body.negative_prompt = negative;
  body.changes = [...document.querySelectorAll(".change")].map((row) => ({
    second: Number(row.querySelector(".second").value),
    prompt: row.querySelector(".text").value,
  }));
  if (body.changes.length) body.text_change = element("text_change").value;
  const [file] = element("image").files;
  if (file) body.image = await base64(file);
  return body;
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("The image cannot be read."));
    reader.readAsDataURL(file);
  });
}

async function sample() {
  clearStage();
  say("waiting", "Asking…");
  stage.scrollIntoView({ block: "nearest" });
  try {
    if (!model) {
      token = element("token").value;
      await start();
      if (!model) return say("empty", "Ready.");
      sessionStorage.setItem("token", token);
    }
    const headers = { "Content-Type": "application/json" };
    const answer = await ask("api/videos", { method: "POST", headers, body: JSON.stringify(await requestBody()) });
    const progress = await answer.json();
    current = progress.id;
    await follow(current);
  } catch (error) {
    say("empty", "Ready.");
    element("problem").textContent = error.message;
  }
  current = null;
}

async function follow(video) {
  let seen = 0;
  for (let tries = 0; tries < RECONNECTS; tries++) {
    try {
      const headers = { "Last-Event-ID": String(seen) };
      const answer = await ask(`api/videos/${video}/events`, { headers });
      for await (const { id, progress } of events(answer.body)) {
        [seen, tries] = [id, 0];
        await show(progress);
        if (["done", "stopped", "failed"].includes(progress.state)) return;
      }
    } catch (error) {
      if (error.status) throw error; // an answer, and not a lost connection
    }
    await new Promise((resolve) => setTimeout(resolve, 500 * (tries + 1)));
  }
  throw new Error("The connection to the server is lost.");
}

async function* events(body) {
  let text = "";
  for await (const part of chunks(body.pipeThrough(new TextDecoderStream()))) {
    text += part;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const event of whole) {
      const fields = new Map(event.split("\n").map((line) => line.split(/: ?(.*)/s, 2)));
      if (fields.has("data")) yield { id: Number(fields.get("id")), progress: JSON.parse(fields.get("data")) };
    }
  }
}

async function* chunks(stream) { // not every browser iterates streams
  const reader = stream.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function show(progress) {
  const { state, ahead, frames, num_frames: total } = progress;
  element("bar").style.width = `${(100 * frames) / total}%`;
  if (progress.strip) await draw(progress);
  if (state === "waiting") {
    say(state, ahead === 0 ? "You are next." : `Waiting: ${ahead} ${ahead === 1 ? "video is" : "videos are"} before yours.`);
  } else if (state === "sampling") {
    const left = progress.seconds_left;
    say(state, `Sampling: frame ${frames} of ${total}`, left === null ? "" : `${duration(left)} left`);
  } else {
    const seconds = (frames / model.fps).toFixed(1);
    const ends = { done: `Done: ${frames} frames, ${seconds} s.`, stopped: `${progress.message} ${frames} frames, ${seconds} s.` };
    if (progress.video) await play(progress.video);
    say(state, ends[state] ?? progress.message);
  }
}

function duration(seconds) {
  const whole = Math.ceil(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

// The newest frames, each below the one before: the last is shown, and those that the film needs go there.
async function draw({ strip, frames, num_frames: total }) {
  const picture = new Image();
  picture.src = `data:image/png;base64,${strip}`;
  await picture.decode();
  const size = model.frame_size, count = picture.height / size;
  if (film.hidden || frames === count) {
    [film.width, film.height, film.hidden] = [FILM_FRAMES * size, size, false];
  }
  const line = film.getContext("2d");
  for (let index = 0; index < count; index++) {
    const frame = frames - count + index;
    for (let place = 0; place < FILM_FRAMES; place++) {
      const shown = Math.round((place * (total - 1)) / (FILM_FRAMES - 1));
      if (shown === frame) line.drawImage(picture, 0, index * size, size, size, place * size, 0, size, size);
    }
  }
  const last = (count - 1) * size;
  screen.getContext("2d").drawImage(picture, 0, last, size, size, 0, 0, size, size);
}

async function play(address) {
  const content = await (await ask(address.replace(/^\//, ""))).blob();
  videoAddress = URL.createObjectURL(content);
  const player = element("player"), download = element("download");
  player.src = download.href = videoAddress;
  const words = element("prompt").value.toLowerCase().replace(/[^a-z0-9]+/g, "_").replace(/^_|_$/g, "").slice(0, 60);
  download.download = `${words || "video"}.mp4`;
  player.hidden = download.hidden = false;
  player.play().catch(() => {}); // a browser that plays nothing by itself has controls
}

function addChange() {
  const row = element("change").content.cloneNode(true);
  const count = document.querySelectorAll(".change").length;
  row.querySelector(".second").value = Math.round((Number(element("seconds").value || 10) * (count + 1)) / (count + 2));
  row.querySelector(".text").maxLength = model?.limits.max_prompt_length ?? 500;
  row.querySelector(".remove").addEventListener("click", (event) => event.target.closest(".change").remove());
  element("changes").append(row);
}

function showImageName() {
  const [file] = element("image").files;
  element("image-name").textContent = file ? `First frame: ${file.name}` : "First frame: drop an image, or choose one";
  element("clear-image").hidden = !file;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!current) sample();
});
element("stop").addEventListener("click", async () => {
  element("stop").disabled = true;
  if (current) await ask(`api/videos/${current}`, { method: "DELETE" }).catch(() => {});
});
addEventListener("pagehide", () => {
  if (current) ask(`api/videos/${current}`, { method: "DELETE", keepalive: true }).catch(() => {});
});
element("add-change").addEventListener("click", addChange);
element("image").addEventListener("change", showImageName);
element("clear-image").addEventListener("click", () => {
  element("image").value = "";
  showImageName();
});
const drop = element("drop");
drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  element("image").files = event.dataTransfer.files;
  showImageName();
});

say("empty", "Ready.");
start();
