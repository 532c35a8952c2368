// What both components share: the payload, half floats, colours, small DOM helpers.

const HALF = new Float32Array(65536) // fp16 bit pattern -> number; Float16Array is too new to rely on
for (let bits = 0; bits < 65536; bits++) {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const fraction = bits & 1023
  if (exponent === 0) HALF[bits] = sign * fraction * 2 ** -24
  else if (exponent === 31) HALF[bits] = fraction ? NaN : sign * Infinity
  else HALF[bits] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
}

// Payload: uint32 length of the header, the header (JSON), then the arrays it lists, 4-byte aligned.
function unpackHeader(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true)
  return JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)))
}

function unpack(bytes) {
  const header = unpackHeader(bytes)
  const copy = bytes.slice() // typed arrays need their offsets aligned
  const arrays = {}
  for (const [name, { dtype, offset, count }] of Object.entries(header.arrays)) {
    const type = { float16: Uint16Array, float32: Float32Array, uint8: Uint8Array }[dtype]
    arrays[name] = new type(copy.buffer, offset, count)
  }
  return { header, arrays }
}

// The two colour tables (256 RGBA each): one fades low values to transparent, one is opaque throughout.
function colourTables(rgb) {
  const even = new Uint8ClampedArray(1024)
  const faded = new Uint8ClampedArray(1024)
  for (let i = 0; i < 256; i++) {
    for (const table of [even, faded]) table.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2]], 4 * i)
    even[4 * i + 3] = 255
    faded[4 * i + 3] = Math.round(255 * Math.min(1, i / 115))
  }
  return { even, faded }
}

// One canvas pixel per cell; CSS does the enlarging, so drawing a map costs microseconds.
function paint(canvas, values, [rows, columns], [low, high], table) {
  if (canvas.width !== columns || canvas.height !== rows) {
    canvas.width = columns
    canvas.height = rows
  }
  const context = canvas.getContext('2d', { willReadFrequently: true })
  const pixels = context.createImageData(columns, rows)
  const factor = high > low ? 255 / (high - low) : 0
  for (let i = 0; i < values.length; i++) {
    const at = 4 * Math.max(0, Math.min(255, Math.round((values[i] - low) * factor)))
    pixels.data.set(table.subarray(at, at + 4), 4 * i)
  }
  context.putImageData(pixels, 0, 0)
}

// NaN stands for what was not kept; no comparison with it holds, so these pass over it.
const largest = (values) => values.reduce((a, b) => (b > a ? b : a), 0)
const smallest = (values) => values.reduce((a, b) => (b < a ? b : a), Infinity)

// Mean of a map inside a box (shares of the sides); a cell counts when its centre lies inside.
function meanIn(values, [rows, columns], [top, left, bottom, right]) {
  let sum = 0
  let count = 0
  for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) {
    const [cy, cx] = [(y + 0.5) / rows, (x + 0.5) / columns]
    if (cy >= top && cy < bottom && cx >= left && cx < right) {
      sum += values[y * columns + x]
      count++
    }
  }
  return sum / count
}

function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name === 'style' && typeof value === 'object') Object.assign(element.style, value)
    else if (name === 'data') Object.assign(element.dataset, value)
    else if (name.startsWith('on') || name in element) element[name] = value
    else if (value !== undefined) element.setAttribute(name, value)
  }
  element.append(...children.filter((child) => child !== null && child !== undefined))
  return element
}

// A lesson shows only a part of a component: without the elements of the selectors that it names.
function hideParts(root, { lesson }) {
  root.classList.toggle('stacked', Boolean(lesson?.stacked))
  for (const name of lesson?.hide ?? []) for (const part of root.querySelectorAll(name)) part.hidden = true
}

// A "?" that explains a term to who points at it or comes to it with the keyboard.
function help(text) {
  return h('button', { type: 'button', className: 'help', 'aria-label': text, data: { text } }, '?')
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  element.append(...children)
  return element
}

function fill(template, values) {
  return template.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole))
}

function probability(value) {
  if (!Number.isFinite(value)) return '–'
  if (value === 0) return '0'
  return Math.abs(value) >= 0.0001 ? value.toPrecision(3) : value.toExponential(1)
}

function percent(value) {
  if (!Number.isFinite(value)) return '–'
  const hundred = 100 * value
  return (hundred >= 10 ? hundred.toFixed(0) : hundred >= 0.1 ? hundred.toFixed(1) : hundred > 0 ? '<0.1' : '0') + '%'
}

// Colour bar: canvas strip, a marker for the value under the pointer, numbers below.
function colourBar(label) {
  const strip = h('canvas', { className: 'strip', width: 256, height: 1 })
  const marker = h('div', { className: 'marker', hidden: true })
  const numbers = h('div', { className: 'numbers' })
  const caption = h('div', { className: 'caption' })
  const root = h('div', { className: 'colourbar', role: 'img', 'aria-label': label },
    h('div', { className: 'bar' }, strip, marker), numbers, caption)
  return {
    root,
    draw(range, table, text, clipped) {
      paint(strip, Float32Array.from({ length: 256 }, (_, i) => i), [1, 256], [0, 255], table)
      const [low, high] = range
      const stops = [0, 0.25, 0.5, 0.75, 1].map((t) => low + t * (high - low))
      numbers.replaceChildren(...stops.map((value, i) =>
        h('span', {}, (clipped && i === 4 ? '≥ ' : '') + probability(value))))
      caption.textContent = text
    },
    mark(value, [low, high]) {
      marker.hidden = value === null || !(high > low)
      if (!marker.hidden) marker.style.left = `${100 * Math.max(0, Math.min(1, (value - low) / (high - low)))}%`
    },
  }
}

// A row of small maps to pick one from. `items`: [{label, title}]; draw(i, canvas) paints one.
function strip({ label, about, items, onPick, onPeek }) {
  const buttons = items.map((item, i) => {
    const canvas = h('canvas', { width: 1, height: 1 })
    const button = h('button', {
      type: 'button', className: 'thumb', title: item.title ?? item.label, data: { slot: i },
      onclick: () => onPick(i), onpointerenter: (event) => event.pointerType === 'mouse' && onPeek(i),
      onpointerleave: () => onPeek(null),
    }, canvas, h('span', {}, item.label))
    return { button, canvas }
  })
  const note = h('span', { className: 'note' })
  const root = h('div', { className: 'picker', role: 'group', 'aria-label': label },
    h('div', { className: 'label' }, label, help(about), note), h('div', { className: 'thumbs' }, ...buttons.map((b) => b.button)))
  return {
    root, note,
    update(chosen, shown, draw) {
      buttons.forEach(({ button, canvas }, i) => {
        button.setAttribute('aria-pressed', String(i === chosen))
        button.classList.toggle('shown', i === shown)
        draw(i, canvas)
      })
    },
  }
}

// Buttons of which exactly one is on.
function segmented(label, options, get, set) {
  const buttons = options.map(([value, text, title]) => h('button', {
    type: 'button', title: title ?? '', data: { value }, onclick: () => set(value),
  }, text))
  const root = h('div', { className: 'segmented', role: 'group', 'aria-label': label }, ...buttons)
  return {
    root,
    update() {
      for (const button of buttons) button.setAttribute('aria-pressed', String(button.dataset.value === String(get())))
    },
  }
}

// What is looked at, as the address says it: words by their labels, the number of the step that is shown, the name of
// the layer, the head from 1, and the box in cells. `view` is {words, step, layer, head, box}; `steps`: slot -> number.
const ADDRESS = ['word', 'step', 'layer', 'head', 'box']

function writeAddress({ units, layers }, steps, { words, step, layer, head, box }) {
  const url = new URL(location.href)
  const [rows, columns] = layers[layer].grid
  for (const key of ADDRESS) url.searchParams.delete(key)
  for (const unit of words) url.searchParams.append('word', units[unit].label)
  if (step) url.searchParams.set('step', steps[step - 1])
  if (layer) url.searchParams.set('layer', layers[layer].name)
  if (head) url.searchParams.set('head', head)
  if (box) url.searchParams.set('box', box.map((side, i) => Math.round(side * (i % 2 ? columns : rows))).join())
  try { history.replaceState(history.state, '', url) } catch { /* files opened from a disk may not do it */ }
}

// The view of the address, or null if it names none of this trace. What it names wrongly is as if it were not named.
function readAddress({ units, layers, folder }, steps) {
  const query = new URLSearchParams(location.search)
  if (!query.has('word') || (query.get('trace') ?? folder) !== folder) return null
  const words = query.getAll('word').map((label) => units.findIndex((unit) => unit.label === label))
  if (words.includes(-1)) return null
  const layer = Math.max(0, layers.findIndex(({ name }) => name === query.get('layer')))
  const [rows, columns] = layers[layer].grid
  const box = (query.get('box') ?? '').split(',').map((side, i) => Number.parseInt(side, 10) / (i % 2 ? columns : rows))
  const valid = box.length === 4 && box.every((side) => side >= 0 && side <= 1) && box[0] < box[2] && box[1] < box[3]
  return { words, step: 1 + steps.indexOf(Number(query.get('step'))), layer, head: Number(query.get('head')), box: valid ? box : null }
}

// Gives `app` its state: what is chosen, kept for this trace while the browser tab lives, and over it what is only
// pointed at. `passing` is what is not kept; `clamp` bounds a state; expects app.header.id and app.render. `address`:
// the numbers of the steps, a state -> the view for the address, and back.
function enliven(app, { fresh, passing, clamp, steps, address }) {
  const memory = `toushi:${app.header.id}`
  Object.assign(app, { state: { ...fresh }, peeked: {}, hovered: null })
  try {
    const kept = JSON.parse(sessionStorage.getItem(memory))
    if (kept) Object.assign(app.state, kept, passing)
  } catch { /* storage may be forbidden; the session then starts fresh */ }
  const view = address && readAddress(app.header, address.numbers)
  if (view) Object.assign(app.state, address.state(view))
  clamp(app.state)
  let writing = null // browsers limit how often the address may change
  const write = () => {
    clearTimeout(writing)
    if (address) writing = setTimeout(() => writeAddress(app.header, address.numbers, address.view(app.state)), 200)
  }
  write()
  app.set = (patch) => {
    Object.assign(app.state, patch)
    clamp(app.state)
    write()
    try { sessionStorage.setItem(memory, JSON.stringify(app.state)) } catch { /* as above */ }
    app.changed()
  }
  app.peek = (patch) => { app.peeked = patch; app.changed() }
  app.hover = (pointer) => { app.hovered = pointer; app.changed() }
  let frame = 0
  app.changed = () => { frame ||= requestAnimationFrame(() => { frame = 0; app.render() }) }
  let timer = null
  app.playing = () => timer !== null
  app.pause = () => { clearInterval(timer); timer = null; app.changed() }
  app.play = () => {
    if (!steps) return
    if (timer) return app.pause()
    const next = () => app.set({ step: (app.state.step % steps) + 1 })
    timer = setInterval(next, Math.max(80, Math.min(400, 4000 / steps)))
    next()
  }
  app.stop = () => { clearInterval(timer); clearTimeout(writing); cancelAnimationFrame(frame) }
}

// Keys -> what they do; a letter counts with Caps Lock, too. A slider keeps its own arrows.
function onKeys(root, actions) {
  root.onkeydown = (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.type === 'range' && event.key.startsWith('Arrow')) return
    const action = actions[event.key] ?? actions[event.key.toLowerCase()]
    if (!action) return
    event.preventDefault()
    action()
  }
}

// One frame of `frames` (uint8 RGB), counted from 1.
function paintFrame(canvas, frames, [height, width], number) {
  canvas.width = width
  canvas.height = height
  const pixels = new ImageData(width, height)
  const start = (number - 1) * height * width * 3
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = frames[start + 3 * i + c]
    pixels.data[4 * i + 3] = 255
  }
  canvas.getContext('2d').putImageData(pixels, 0, 0)
}
