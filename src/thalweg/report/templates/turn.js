"use strict";
// Surfaces that can be turned: drag, or the arrow keys. Without this script the drawing below stays as it is.
for (const panel of document.querySelectorAll("[data-surface]")) {
  const { title, x, y, z, labels, marks, colours } = JSON.parse(panel.dataset.surface);
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  panel.append(canvas);
  panel.classList.add("turning");
  const pen = canvas.getContext("2d");
  const heights = z.flat().filter((value) => value !== null);
  const low = Math.min(...heights), high = Math.max(...heights);
  const unit = (value, from, to) => (to > from ? (2 * (value - from)) / (to - from) - 1 : 0);
  const place = (px, py, pz) => [unit(px, x[0], x.at(-1)), unit(py, y[0], y.at(-1)), 0.75 * unit(pz, low, high)];
  const points = z.map((row, i) => row.map((value, j) => (value === null ? null : place(x[j], y[i], value))));
  let around = -1.05, above = 0.52; // radians

  const theme = (name) => getComputedStyle(panel).getPropertyValue("--" + name);
  const shade = (value) => colours[Math.round(Math.min(Math.max((value / 0.75 + 1) / 2, 0), 1) * (colours.length - 1))];

  function draw() {
    const size = panel.clientWidth, sharp = window.devicePixelRatio || 1;
    canvas.width = size * sharp;
    canvas.height = size * 0.78 * sharp;
    pen.setTransform(sharp, 0, 0, sharp, 0, 0);
    const [sa, ca, se, ce] = [Math.sin(around), Math.cos(around), Math.sin(above), Math.cos(above)];
    const project = ([px, py, pz]) => {
      const right = -sa * px + ca * py, away = ca * px + sa * py;
      return [size * (0.5 + 0.28 * right), size * (0.4 - 0.28 * (ce * pz - se * away)), ce * away + se * pz];
    };
    const seen = points.map((row) => row.map((point) => point && project(point)));
    const line = (a, b, colour) => {
      pen.strokeStyle = colour;
      pen.beginPath();
      pen.moveTo(a[0], a[1]);
      pen.lineTo(b[0], b[1]);
      pen.stroke();
    };
    const write = (text, [px, py], colour) => {
      pen.fillStyle = colour;
      pen.fillText(text, px, py);
    };
    pen.font = "13px system-ui, sans-serif";
    pen.textAlign = "center";
    const corner = (i, j, k) => project([i, j, 0.75 * k]);
    for (const [i, j] of [[-1, -1], [-1, 1], [1, -1], [1, 1]]) {
      line(corner(i, j, -1), corner(i, j, 1), theme("grid"));
      line(corner(i, j, -1), corner(-i, j, -1), theme("grid"));
      line(corner(i, j, -1), corner(i, -j, -1), theme("grid"));
    }
    const tiles = [];
    for (let i = 0; i + 1 < seen.length; i++)
      for (let j = 0; j + 1 < seen[0].length; j++) {
        const four = [[i, j], [i, j + 1], [i + 1, j + 1], [i + 1, j]];
        if (four.some(([a, b]) => seen[a][b] === null)) continue;
        const corners = four.map(([a, b]) => seen[a][b]);
        const height = four.reduce((sum, [a, b]) => sum + points[a][b][2], 0) / 4;
        tiles.push({ corners, far: corners.reduce((sum, point) => sum + point[2], 0), colour: shade(height) });
      }
    tiles.sort((a, b) => a.far - b.far);
    for (const { corners, colour } of tiles) {
      pen.fillStyle = pen.strokeStyle = colour;
      pen.beginPath();
      corners.forEach(([px, py], k) => (k ? pen.lineTo(px, py) : pen.moveTo(px, py)));
      pen.closePath();
      pen.fill();
      pen.stroke();
    }
    for (const { at, label } of marks) {
      const spot = project(place(...at));
      pen.fillStyle = theme("vermilion");
      pen.beginPath();
      pen.arc(spot[0], spot[1], 5, 0, 7);
      pen.fill();
      pen.textAlign = spot[0] > size / 2 ? "right" : "left";
      write(label, [spot[0] + (spot[0] > size / 2 ? -9 : 9), spot[1] - 7], theme("ink"));
    }
    pen.textAlign = "center";
    const side = (value) => (value > 0 ? 1 : -1); // the edges nearest to the reader carry the names
    write(labels[0], project([0, 1.4 * side(sa), -0.95]), theme("ink"));
    write(labels[1], project([1.4 * side(ca), 0, -0.95]), theme("ink"));
    pen.textAlign = "left";
    write(title, [4, 16], theme("ink"));
    write(labels[2], [4, title ? 34 : 16], theme("faint"));
  }

  let held = null;
  const turn = (right, up) => {
    around -= right;
    above = Math.min(Math.max(above + up, -1.5), 1.5);
    draw();
  };
  canvas.addEventListener("pointerdown", (event) => {
    held = [event.clientX, event.clientY];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    turn((event.clientX - held[0]) / 120, (event.clientY - held[1]) / 120);
    held = [event.clientX, event.clientY];
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (held = null));
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (!by) return;
    event.preventDefault();
    turn(...by);
  });
  new ResizeObserver(draw).observe(panel);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}
