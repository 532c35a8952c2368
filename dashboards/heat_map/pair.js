// Two traces, or two branches of one, beside each other on one scale, and their difference.

const PAIR = { unit: 0, step: 0, layer: 0, opacity: 0.8, smooth: false, bare: false, box: null }

function makePair({ header, arrays }) {
  const { units, steps, layers, sides, names, sign } = header
  const [less, more] = sign > 0 ? names : [...names].reverse()
  const app = { header, tables: colourTables(arrays.colours), names: [...names, `${more} − ${less}`] }
  app.said = { a: names[0], b: names[1], more, difference: app.names[2] }
  app.t = (key, values = {}) => fill(header.text[key] ?? key, values)
  app.grid = (layer) => layers[layer].grid
  const cellsOf = (layer) => layers[layer].grid[0] * layers[layer].grid[1]
  const start = (side, { step, layer }, unit) => ((side * (1 + steps.length) + step) * units.length + unit) * cellsOf(layer)
  const planeOf = (side, view, unit) => {
    const from = start(side, view, unit)
    return Float32Array.from(arrays[`maps${view.layer}`].subarray(from, from + cellsOf(view.layer)), (bits) => HALF[bits])
  }
  const difference = (view, unit) => {
    const first = planeOf(0, view, unit)
    return planeOf(1, view, unit).map((value, i) => sign * (value - first[i]))
  }
  app.share = (side, { step, layer }, unit) => arrays[`shares${layer}`][(side * (1 + steps.length) + step) * units.length + unit]
  app.shareIn = (side, view, unit, box) => meanIn(planeOf(side, view, unit), app.grid(view.layer), box)

  // Both scales are those of all words and steps of the layer (of the steps' means while these are shown).
  const words = units.map((_, i) => i).filter((i) => units[i].kind === 'word')
  const ranked = words.length ? words : units.map((_, i) => i)
  const ends = {}
  const end = (of, { layer, step }) => (ends[[of.name, layer, step === 0]] ??= Math.max(...(step === 0 ? [0] : steps.map((_, s) => s + 1)).flatMap(
    (one) => ranked.map((unit) => of({ layer, step: one }, unit)))))
  const highest = (view, unit) => Math.max(...[0, 1].map((side) => largest(planeOf(side, view, unit))))
  const widest = (view, unit) => largest(difference(view, unit).map(Math.abs))
  app.range = (view) => [0, end(highest, view)]
  app.signedRange = (view) => [-end(widest, view), end(widest, view)]

  // A stage of its own for each side and one for the difference; each asks its own app.
  const stage = (name, side, values, more) => Object.assign(Object.create(app), {
    header: { ...header, ...side }, films: {}, imageUrl: null, number: probability,
    plane: values, value: (view, unit, cell) => values(view, unit)[cell],
    title: (unit) => `${name} · ${units[unit].label}`, details: () => side.caption, ...more })
  app.sides = sides.map((side, i) => stage(names[i], side, (view, unit) => planeOf(i, view, unit), {
    films: filmsOf(app, side, (film) => arrays[film + i], `${names[i]}: `),
    imageUrl: arrays[`image${i}`] ? URL.createObjectURL(new Blob([arrays[`image${i}`]], { type: 'image/png' })) : null }))
  const signed = colourTables(arrays.signed).even
  app.difference = stage(app.names[2], { ...sides[0], caption: '' }, difference, { tables: { even: signed, faded: signed },
    number: (value) => (value > 0 ? '+' : '') + probability(value) })

  app.stepName = (step) => step === 0 ? app.t('all_steps') : sides.map((side, i) => `${names[i]} ${steps[step - 1][i] + 1}/${side.total}`).join(' · ')
  app.where = (view) => `${app.stepName(view.step)} · ${layers[view.layer].label}`
  const clamp = (state) => {
    const bound = (v, n) => Math.max(0, Math.min(n, Number.isInteger(v) ? v : 0))
    state.unit = bound(state.unit, units.length - 1)
    state.step = bound(state.step, steps.length)
    state.layer = bound(state.layer, layers.length - 1)
    return state
  }
  const address = { numbers: steps.map(([step]) => step + 1), view: (state) => ({ ...state, words: [state.unit] }),
    state: ({ words: [unit], step, layer, box }) => ({ unit, step, layer, box }) }
  enliven(app, { fresh: { ...PAIR, unit: header.first }, passing: { box: null }, clamp, steps: steps.length, address })
  app.activate = () => {} // all three stages look at the same word
  app.view = () => clamp({ ...app.state, ...app.peeked, fade: true, background: 'expected' })
  app.shown = (view) => [view.unit]
  app.choose = (unit) => app.set({ unit })
  app.curves = (view) => [0, 1].map((side) => ({ colour: units[view.unit].colour, chosen: true, dashes: side ? '6 4' : '',
    values: steps.map((_, s) => app.share(side, { ...view, step: s + 1 }, view.unit)) }))
  app.readout = (view) => `${units[view.unit].label} ${names.map((name, side) => `${name} ${percent(app.share(side, view, view.unit))}`).join(', ')}`
  // Two branches of one trace have one film.
  app.films = sides[0].folder === sides[1].folder ? app.sides[0].films
    : Object.assign({}, ...app.sides.map(({ films }, i) => (films.expected ? { [names[i]]: { ...films.expected, name: names[i] } } : {})))
  const release = app.stop
  app.stop = () => { release(); for (const { imageUrl } of app.sides) if (imageUrl) URL.revokeObjectURL(imageUrl) }
  return app
}

// A difference of shares in points of percent: +0.04%.
function points(value) {
  if (!Number.isFinite(value)) return '–'
  const size = (100 * Math.abs(value)).toFixed(2)
  return (size === '0.00' ? '' : value > 0 ? '+' : '−') + size + '%'
}

// Each word's share in A and in B, in the picture or in the box, and the difference.
function makeTable(app) {
  const { header, t } = app
  const title = h('span', {})
  const clear = h('button', { type: 'button', className: 'clear', title: t('clear_box'), 'aria-label': t('clear_box'),
    onclick: () => app.set({ box: null }) }, '✕')
  const rows = header.units.map((unit, i) => {
    const cells = [0, 1, 2].map(() => h('td', {}))
    const name = h('button', { type: 'button', onclick: () => app.choose(i) }, unit.label)
    return { root: h('tr', { className: unit.kind, data: { unit: i } }, h('th', { scope: 'row' }, name), ...cells), cells }
  })
  const head = ['', ...app.names].map((name) => h('th', { scope: 'col' }, name))
  const root = h('div', { className: 'shares' }, h('div', { className: 'label' }, title, clear),
    h('table', {}, h('thead', {}, h('tr', {}, ...head)), h('tbody', {}, ...rows.map((row) => row.root))),
    h('div', { className: 'hint' }, t('pair_hint', app.said)))
  return {
    root,
    update(view) {
      title.textContent = t(view.box ? 'pair_box' : 'share_whole')
      clear.hidden = !view.box
      rows.forEach(({ root: row, cells }, i) => {
        const [a, b] = [0, 1].map((side) => (view.box ? app.shareIn(side, view, i, view.box) : app.share(side, view, i)))
        row.classList.toggle('shown', i === view.unit)
        Object.assign(row.dataset, { a, b })
        cells[0].textContent = percent(a)
        cells[1].textContent = percent(b)
        cells[2].textContent = points(header.sign * (b - a))
      })
    },
  }
}

function build(root, bytes) {
  const app = makePair(unpack(bytes))
  const { header, t } = app
  const stages = [...app.sides, app.difference].map((one, i) => makeStage(one, i))
  const chips = makeChips(app)
  const timeline = header.steps.length ? makeTimeline(app) : null
  const table = makeTable(app)
  const bar = colourBar(t('colour_bar'))
  const signedBar = colourBar(t('signed_bar'))
  const layers = strip({ label: t('layer'), about: t('help_layer'), items: header.layers, onPick: (layer) => app.set({ layer }),
    onPeek: (layer) => app.peek(layer === null ? {} : { layer }) })
  const opacity = h('input', { type: 'range', className: 'opacity', min: 0, max: 1, step: 0.05, 'aria-label': t('opacity'),
    oninput: () => app.set({ opacity: Number(opacity.value) }) })
  const bare = h('button', { type: 'button', className: 'toggle bare', title: t('bare_help'), onclick: () => app.set({ bare: !app.state.bare }) }, t('bare'))
  const cells = segmented(t('cells'), [['false', t('cells_exact'), t('cells_exact_help')], ['true', t('cells_smooth'), t('cells_smooth_help')]],
    () => app.state.smooth, (value) => app.set({ smooth: value === 'true' }))
  const group = (label, control) => h('div', { className: 'field' }, h('span', { className: 'label' }, label), control)
  const { size } = header.sides[0]
  root.style.setProperty('--fit', `${Math.round((46 * size[0]) / size[1])}vh`)
  root.replaceChildren(chips.root, h('div', { className: 'stages three' }, ...stages.map((stage) => stage.root)),
    h('div', { className: 'scalerow' }, bar.root, signedBar.root),
    h('div', { className: 'columns' }, h('div', { className: 'right' }, timeline?.root ?? '', layers.root,
      h('div', { className: 'settings' }, group(t('opacity'), opacity), group(t('map'), bare), group(t('cells'), cells.root)),
      h('div', { className: 'hint keys' }, t('pair_keys', app.said))), table.root))

  app.render = () => {
    const view = app.view()
    const ranges = [app.range(view), app.range(view), app.signedRange(view)]
    const values = stages.map((stage, i) => {
      const seen = i === 2 ? { ...view, opacity: 1, bare: false } : view
      stage.draw(seen, view.unit, ranges[i])
      return stage.point(seen, view.unit, app.hovered)
    })
    bar.draw(ranges[0], app.tables.faded, t('scale_pair_caption', app.said), false)
    bar.mark(app.hovered && app.hovered.stage < 2 ? values[app.hovered.stage] : null, ranges[0])
    signedBar.draw(ranges[2], app.difference.tables.even, t('scale_signed_caption', app.said), false)
    signedBar.mark(app.hovered ? values[2] : null, ranges[2])
    chips.update(view)
    timeline?.update(view, app.playing())
    layers.update(app.state.layer, view.layer, (layer, canvas) => {
      const there = { ...view, layer }
      paint(canvas, app.difference.plane(there, view.unit), app.grid(layer), app.signedRange(there), app.difference.tables.even)
    })
    layers.note.textContent = header.layers[view.layer].title
    table.update(view)
    opacity.value = view.opacity
    bare.setAttribute('aria-pressed', String(view.bare))
    cells.update()
    Object.assign(root.dataset, { ready: 'true', word: header.units[view.unit].label, step: view.step, layer: view.layer })
  }
  const turn = (value, by, count) => (value + by + count) % count
  onKeys(root, {
    ArrowLeft: () => app.set({ step: Math.max(Math.min(1, header.steps.length), app.state.step - 1) }),
    ArrowRight: () => app.set({ step: Math.min(header.steps.length, app.state.step + 1) }),
    ArrowUp: () => app.set({ layer: turn(app.state.layer, -1, header.layers.length) }),
    ArrowDown: () => app.set({ layer: turn(app.state.layer, 1, header.layers.length) }),
    0: () => app.set({ step: 0 }), Escape: () => app.set({ box: null }), p: () => app.play(),
    m: () => app.set({ bare: !app.state.bare }),
  })
  app.render()
  return app
}
