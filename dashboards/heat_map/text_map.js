// The prompt as the encoder meets it: characters, tokens and words on one grid, and who reads from whom.

// The bytes of a character in UTF-8, as numbers.
const bytesOf = (character) => [...new TextEncoder().encode(character)]

// Three aligned lines. Each character is a column; what stands before and after the text has columns of its own.
function makeLines(app) {
  const { header, t } = app
  const characters = Array.from(header.prompt ?? '')
  const before = header.tokens.filter((token) => !token.span && token.before).length
  const after = header.tokens.filter((token) => !token.span && !token.before).length
  const first = 2 + before // column 1 holds the names of the lines
  const place = (element, row, from, to) => {
    Object.assign(element.style, { gridRow: row, gridColumn: `${from} / ${to}` })
    return element
  }
  const lines = h('div', { className: 'lines', lang: 'zh' })
  lines.style.gridTemplateColumns = `max-content repeat(${before + characters.length + after}, minmax(max-content, auto)) 1fr`
  ;[[t(header.lesson?.bytes ? 'characters_bytes' : 'characters')], [t('tokens'), help(t('help_token'))], [t('words_line')]].forEach((name, row) =>
    lines.append(place(h('div', { className: 'head' }, ...name), row + 1, 1, 2)))
  characters.forEach((character, i) =>
    lines.append(place(h('div', { className: 'piece', title: `U+${character.codePointAt(0).toString(16).toUpperCase()}` },
      character.trim() ? character : '␣', ...(header.lesson?.bytes ? bytesOf(character) : []).map((byte) => h('small', {}, byte))), 1, first + i, first + i + 1)))
  for (const { text, span } of header.words) {
    lines.append(place(h('div', { className: 'piece word' }, text), 3, first + span[0], first + span[1]))
  }
  // Several byte tokens may share one character: they stand side by side in its column.
  const groups = new Map()
  header.tokens.forEach((token, i) => {
    const key = token.span ? token.span.join() : `alone ${i}`
    groups.set(key, [...(groups.get(key) ?? []), i])
  })
  const pieces = []
  let leading = 2
  let trailing = first + characters.length
  for (const members of groups.values()) {
    const { span, before: early } = header.tokens[members[0]]
    const home = h('div', { className: 'bytes' }, ...members.map((i) => {
      const token = header.tokens[i]
      const part = members.length > 1 ? `${members.indexOf(i) + 1}/${members.length}` : ''
      pieces[i] = h('button', {
        type: 'button', className: 'piece token', title: `${token.text} · id ${token.id}`, data: { token: i },
        onclick: () => app.set({ token: app.state.token === i ? null : i }),
        onpointerenter: () => app.peek({ token: i }), onpointerleave: () => app.peek({}),
      }, token.text.trim() ? token.text : '␣', h('small', {}, part || String(token.id)))
      return pieces[i]
    }))
    if (span) place(home, 2, first + span[0], first + span[1])
    else if (early) place(home, 2, leading, ++leading)
    else place(home, 2, trailing, ++trailing)
    lines.append(home)
  }
  return {
    root: lines,
    update(view) {
      pieces.forEach((piece, i) => {
        const on = view.token !== null
        const value = on ? app.value(view, view.token, i) : 0
        piece.classList.toggle('query', i === view.token)
        piece.setAttribute('aria-pressed', String(i === app.state.token))
        piece.style.background = on ? `color-mix(in srgb, var(--st-primary-color) ${Math.round(85 * Math.sqrt(value))}%, transparent)` : ''
        piece.lastChild.textContent = on ? percent(value) : piece.dataset.plain ??= piece.lastChild.textContent
      })
    },
  }
}

function makeMatrix(app) {
  const { header, t } = app
  const n = header.tokens.length
  const canvas = h('canvas', { role: 'img' })
  const cell = h('div', { className: 'cell', hidden: true })
  const tip = h('div', { className: 'tip', hidden: true })
  const field = h('div', { className: 'frame field' }, canvas, cell, tip)
  const names = () => header.tokens.map((token) => h('span', { title: token.text }, token.text.trim() ? token.text : '␣'))
  const rows = names()
  const columns = names()
  const root = h('div', { className: 'matrix', lang: 'zh' }, h('div', { className: 'axis' }, t('query_reads')),
    h('div', { className: 'names top-names' }, ...columns), h('div', { className: 'names left-names' }, ...rows), field)
  new ResizeObserver(([entry]) => root.style.setProperty('--cell', `${(0.92 * entry.contentRect.width) / n}px`)).observe(field)
  const at = (event) => {
    const area = field.getBoundingClientRect()
    const inside = (v) => Math.max(0, Math.min(n - 1, Math.floor(v * n)))
    return { query: inside((event.clientY - area.top) / area.height), key: inside((event.clientX - area.left) / area.width) }
  }
  field.onpointermove = (event) => app.peek({ token: at(event).query, key: at(event).key })
  field.onpointerleave = () => app.peek({})
  field.onclick = (event) => app.set({ token: at(event).query })
  return {
    root,
    update(view, range) {
      const values = app.matrix(view)
      paint(canvas, values, [n, n], range, app.tables.even)
      canvas.setAttribute('aria-label', t('matrix_alt', { where: app.where(view), n }))
      canvas.drawn = { values, grid: [n, n], range }
      rows.forEach((row, i) => row.classList.toggle('on', i === view.token))
      columns.forEach((column, i) => column.classList.toggle('on', i === view.key))
      cell.hidden = tip.hidden = view.key === null
      if (view.key === null) return null
      const [y, x] = [view.token, view.key]
      Object.assign(cell.style, { top: `${(100 * y) / n}%`, left: `${(100 * x) / n}%`, width: `${100 / n}%`, height: `${100 / n}%` })
      const value = app.value(view, y, x)
      tip.replaceChildren(h('b', {}, probability(value)),
        h('span', {}, t('reads', { query: header.tokens[y].text, key: header.tokens[x].text })))
      tip.classList.toggle('left', x > 0.6 * n)
      tip.classList.toggle('up', y > 0.8 * n)
      Object.assign(tip.style, { top: `${(100 * (y + 1)) / n}%`, left: `${(100 * (x + 1)) / n}%` })
      return value
    },
  }
}

function build(root, bytes) {
  const { header, arrays } = unpack(bytes)
  const n = header.tokens.length
  const cells = n * n
  const app = { header, tables: colourTables(arrays.colours) }
  app.t = (key, values = {}) => fill(header.text[key] ?? key, values)
  app.value = ({ layer, head }, query, key) => HALF[arrays[`attention${layer}`][head * cells + query * n + key]]
  app.matrix = ({ layer, head }) => Float32Array.from(
    arrays[`attention${layer}`].subarray(head * cells, (head + 1) * cells), (bits) => HALF[bits])
  app.where = ({ layer, head }) =>
    `${header.layers[layer].title}${header.layers[layer].heads ? ` · ${head ? app.t('head_n', { n: head }) : app.t('all_heads')}` : ''}`
  const tops = {}
  // The largest value outside the columns of special tokens: attention likes to rest on <bos>, and dims all else.
  const beyond = (layer) => (tops[`text${layer}`] ??= Array.from({ length: header.layers[layer].heads + 1 },
    (_, head) => app.matrix({ layer, head }).reduce((a, b, i) => (header.tokens[i % n].kind === 'special' ? a : Math.max(a, b)), 0),
  ).reduce((a, b) => Math.max(a, b), 0))
  app.range = (view) => {
    if (view.scale === 'text') return [0, beyond(view.layer)]
    const highest = (head) => (tops[[view.layer, head]] ??= largest(app.matrix({ ...view, head })))
    if (view.scale === 'map') return [smallest(app.matrix(view)), highest(view.head)]
    return [0, Math.max(...Array.from({ length: header.layers[view.layer].heads + 1 }, (_, head) => highest(head)))]
  }
  app.view = () => ({ ...app.state, ...app.peeked })
  const { t } = app
  const lines = makeLines(app)
  const hint = h('div', { className: 'hint' }, t('token_hint'))
  if (!header.layers.length) {
    root.replaceChildren(lines.root)
    Object.assign(app, { state: {}, set() {}, peek() {}, stop() {} }) // what a token reads is not known
    root.dataset.ready = 'true'
    return app
  }
  const clamp = (state) => {
    state.layer = Math.min(state.layer, header.layers.length - 1)
    state.head = Math.min(state.head, header.layers[state.layer].heads)
    if (state.token >= n) state.token = null
  }
  const fresh = { layer: header.layers.length - 1, head: 0, token: null, key: null, scale: 'layer', ...header.lesson?.start }
  enliven(app, { fresh, passing: {}, clamp })
  const matrix = makeMatrix(app)
  const bar = colourBar(t('colour_bar'))
  const scale = segmented(t('scale'), [['layer', t('scale_layer'), t('scale_layer_help')], ['text', t('scale_text'), t('scale_text_help')],
    ['map', t('scale_map'), t('scale_map_help')]], () => app.state.scale, (value) => app.set({ scale: value }))
  const layers = strip({ label: t('layer'), about: t('help_encoder_layer'), items: header.layers, onPick: (layer) => app.set({ layer, head: 0 }),
    onPeek: (layer) => app.peek(layer === null ? {} : { layer, head: 0 }) })
  const homes = header.layers.map((layer) => strip({ label: t('head'), about: t('help_head'),
    items: [{ label: t('mean') }, ...Array.from({ length: layer.heads }, (_, i) => ({ label: String(i + 1), title: t('head_n', { n: i + 1 }) }))],
    onPick: (head) => app.set({ head }), onPeek: (head) => app.peek(head === null ? {} : { head }) }))
  const details = h('span', { className: 'note' })
  root.replaceChildren(lines.root, hint, h('div', { className: 'columns' },
    h('div', {}, h('div', { className: 'label' }, t('matrix'), details), matrix.root),
    h('div', { className: 'right' }, layers.root, ...homes.map((one) => one.root),
      h('div', { className: 'scalerow' }, bar.root, scale.root), h('div', { className: 'hint keys' }, t('text_keys')))))
  hideParts(root, header)

  app.render = () => {
    const view = app.view()
    const range = app.range(view)
    lines.update(view)
    const value = matrix.update(view, range)
    details.textContent = app.where(view)
    const thumb = (change) => (i, canvas) => {
      const there = { ...view, ...change(i) }
      paint(canvas, app.matrix(there), [n, n], app.range(there), app.tables.even)
    }
    layers.update(app.state.layer, view.layer, thumb((layer) => ({ layer, head: 0 })))
    layers.note.textContent = header.layers[view.layer].title
    homes.forEach((one, layer) => { one.root.hidden = layer !== view.layer || !header.layers[layer].heads })
    homes[view.layer].update(app.state.head, view.head, thumb((head) => ({ head })))
    bar.draw(range, app.tables.even, t(`scale_${view.scale}_caption`), app.matrix(view).some((one) => one > range[1] * 1.001))
    bar.mark(value, range)
    scale.update()
    Object.assign(root.dataset, { ready: 'true', layer: view.layer, head: view.head, token: view.token ?? '' })
  }
  const { state } = app
  const turn = (value, by, count) => (value + by + count) % count
  const heads = () => header.layers[state.layer].heads + 1
  onKeys(root, {
    ArrowUp: () => app.set({ layer: turn(state.layer, -1, header.layers.length), head: 0 }),
    ArrowDown: () => app.set({ layer: turn(state.layer, 1, header.layers.length), head: 0 }),
    ArrowLeft: () => app.set({ token: turn(state.token ?? 0, -1, n) }),
    ArrowRight: () => app.set({ token: turn(state.token ?? -1, 1, n) }),
    '[': () => app.set({ head: turn(state.head, -1, heads()) }),
    ']': () => app.set({ head: turn(state.head, 1, heads()) }),
    Escape: () => app.set({ token: null }),
  })
  app.render()
  return app
}
