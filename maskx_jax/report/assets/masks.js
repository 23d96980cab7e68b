// Objects drawn over a picture. A mask comes as COCO's run-length code and is drawn as it was scored: a pixel of the
// canvas shows the pixel of the image that its centre lies in.
"use strict";

maskx.masks = (() => {
  // Numbers of 5 bits a character, the least first; 0x20: more follow; 0x10 of the last: the sign. From the fourth on,
  // a number is the difference to the one two places before.
  function runs(text) {
    const found = [];
    for (let place = 0; place < text.length;) {
      let value = 0;
      let shift = 0;
      let digit;
      do {
        digit = text.charCodeAt(place++) - 48;
        value += (digit & 0x1f) * 2 ** shift;
        shift += 5;
      } while (digit & 0x20);
      if (digit & 0x10) value -= 2 ** shift;
      if (found.length > 2) value += found[found.length - 2];
      found.push(value);
    }
    return found;
  }

  // Return a mask as {x, y, width, height, inside} in pixels of a canvas; inside is 1 where the mask is. Null if empty.
  function bitmap(text, image, canvas) {
    const [width, height] = image;
    const toX = (x) => Math.ceil((x * canvas[0]) / width - 0.5);
    const toY = (y) => Math.ceil((y * canvas[1]) / height - 0.5);
    const columns = [];
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    let begin = 0;
    runs(text).forEach((length, index) => {
      const end = begin + length;
      if (index % 2) {
        for (let at = begin; at < end;) {
          const x = Math.floor(at / height);
          const stop = Math.min(end, (x + 1) * height);
          const part = [toX(x), toX(x + 1), toY(at - x * height), toY(stop - x * height)];
          if (part[0] < part[1] && part[2] < part[3]) {
            columns.push(part);
            box[0] = Math.min(box[0], part[0]);
            box[1] = Math.min(box[1], part[2]);
            box[2] = Math.max(box[2], part[1]);
            box[3] = Math.max(box[3], part[3]);
          }
          at = stop;
        }
      }
      begin = end;
    });
    if (!columns.length) return null;
    const made = { x: box[0], y: box[1], width: box[2] - box[0], height: box[3] - box[1] };
    made.inside = new Uint8Array(made.width * made.height);
    for (const [x0, x1, y0, y1] of columns) {
      for (let y = y0 - made.y; y < y1 - made.y; y++) {
        made.inside.fill(1, y * made.width + x0 - made.x, y * made.width + x1 - made.x);
      }
    }
    return made;
  }

  const FILL = 0.45;
  const EDGE = 0.95;

  // A mask hides those below it: mixed colours would say nothing.
  function paint(pixels, mask, color, canvasWidth, dim) {
    const { width, height, inside } = mask;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const at = y * width + x;
        if (!inside[at]) continue;
        const border = x === 0 || y === 0 || x === width - 1 || y === height - 1 ||
          !inside[at - 1] || !inside[at + 1] || !inside[at - width] || !inside[at + width];
        const opacity = (border ? EDGE : FILL) * (dim ? 0.3 : 1);
        const to = 4 * ((mask.y + y) * canvasWidth + mask.x + x);
        pixels.set(color, to);
        pixels[to + 3] = 255 * opacity;
      }
    }
  }

  // Draw objects [{shape: [x, y, w, h, counts], color: [r, g, b], name, dashed, dim, strong}], the last on top.
  function draw(canvas, image, objects, shows) {
    const size = [canvas.width, canvas.height];
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, ...size);
    if (shows.masks) {
      const layer = context.createImageData(...size);
      for (const object of objects) {
        const mask = object.shape[4] ? bitmap(object.shape[4], image, size) : null;
        if (mask) paint(layer.data, mask, object.color, size[0], object.dim);
      }
      context.putImageData(layer, 0, 0);
    }
    const ratio = shows.ratio ?? 1;
    const scale = [size[0] / image[0], size[1] / image[1]];
    context.font = `${600} ${12 * ratio}px system-ui, sans-serif`;
    context.textBaseline = "top";
    for (const object of objects) {
      const [x, y, w, h] = [0, 1, 2, 3].map((side) => object.shape[side] * scale[side % 2]);
      const stroke = `rgb(${object.color.join(" ")})`;
      context.globalAlpha = object.dim ? 0.45 : 1;
      if (shows.boxes || object.strong || (shows.masks && !object.shape[4])) {
        context.setLineDash(object.dashed ? [5 * ratio, 3 * ratio] : []);
        context.lineWidth = (object.strong ? 4 : 1.5) * ratio;
        context.strokeStyle = stroke;
        context.strokeRect(x, y, w, h);
      }
      if ((shows.names && !object.dim) || object.strong) {
        const wide = context.measureText(object.name).width + 8 * ratio;
        const left = Math.max(0, Math.min(x, size[0] - wide));
        const top = y >= 17 * ratio ? y - 17 * ratio : y;
        context.fillStyle = stroke;
        context.fillRect(left, top, wide, 17 * ratio);
        const bright = 0.299 * object.color[0] + 0.587 * object.color[1] + 0.114 * object.color[2];
        context.fillStyle = bright > 140 ? "#000" : "#fff";
        context.fillText(object.name, left + 4 * ratio, top + 2.5 * ratio);
      }
      context.globalAlpha = 1;
    }
  }

  return { runs, bitmap, draw };
})();
