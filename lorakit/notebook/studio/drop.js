// A zone that files are dropped on or chosen in. They are sent one after another, each in pieces that are smaller than
// what a websocket takes (10 MB in Jupyter), the next when the last has been answered. Its other half is drop.py.
const PIECE = 2 ** 21; // bytes
const PATIENCE = 120_000; // milliseconds until a connection that says nothing is given up

export default () => {
  const files = []; // to be sent, the first of them on its way
  const views = new Set(); // who shows how far it is
  const waiting = new Map(); // id of an upload -> who waits for the answer
  let model, stopped;

  const show = (words, share) => views.forEach((view) => view(words, share));

  const ask = (message, buffers = []) =>
    new Promise((resolve) => {
      waiting.set(message.id, resolve);
      setTimeout(resolve, PATIENCE, { refused: true, silent: true });
      model.send(message, undefined, buffers);
    });

  async function send(file) {
    const { name, size } = file;
    const id = `${Date.now()}-${Math.random()}`;
    let answer = await ask({ id, name, size, step: "begin" });
    for (let at = 0; at < size && !answer.refused; at += PIECE) {
      show(`${name}: ${Math.floor((100 * at) / size)} % of ${(size / 1e6).toFixed(1)} MB`, at / size);
      let piece; // none of a folder, or of a file that is gone by now
      try {
        piece = await file.slice(at, at + PIECE).arrayBuffer();
      } catch {}
      const step = stopped ? "stop" : piece ? "piece" : "unread";
      answer = await ask({ id, name, step, at }, piece ? [piece] : []);
    }
    if (!answer.refused) answer = await ask({ id, name, step: "end" });
    waiting.delete(id);
    return answer.silent ? `${name}: no answer from the kernel; send it again` : "";
  }

  async function sendAll(more) {
    files.push(...more);
    if (files.length > more.length) return; // somebody is at it already
    let said = "";
    for (stopped = false; files.length; files.shift()) if (!stopped) said = (await send(files[0])) || said;
    show(said, null);
  }

  function initialize(given) {
    model = given.model;
    model.on("msg:custom", (answer) => waiting.get(answer.id)?.(answer));
  }

  function render({ model, el }) {
    el.innerHTML = `<div class="lk-drop">
      <label><span>Drop files here, or press to choose them</span><input type="file" multiple></label>
      <div hidden><progress max="1" aria-label="sent"></progress>
        <button class="jupyter-button widget-button">Cancel</button></div>
      <div role="status"></div></div>`;
    const [input, label, progress, cancel, words] = ["input", "label", "progress", "button", "[role=status]"].map(
      (name) => el.querySelector(name));
    input.accept = model.get("accept");
    input.onchange = () => {
      sendAll([...input.files]);
      input.value = ""; // the same file may come again
    };
    for (const name of ["dragenter", "dragleave", "drop"]) {
      input.addEventListener(name, () => label.classList.toggle("lk-over", name === "dragenter"));
    }
    cancel.onclick = () => (stopped = true);
    const view = (said, share) => {
      words.textContent = said;
      progress.parentElement.hidden = share === null;
      progress.value = share ?? 0;
    };
    views.add(view);
    return () => views.delete(view);
  }

  return { initialize, render };
};
