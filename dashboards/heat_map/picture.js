// The explorer's state and its one render loop. Nothing here asks the server for anything:
// every map, share and preview came with the payload, so scrubbing and hovering are table look-ups.

const FRESH = { units: [0, 1], active: 0, compare: false, step: 0, layer: 0, head: 0, opacity: 0.8,
  scale: 'shared', fade: true, smooth: false, background: 'expected', bare: false, box: null }

function makeApp({ header, arrays }) {
  const app = { header, tables: colourTables(arrays.colours) }
  const { units, steps, layers } = header
  app.t = (key, values = {}) => fill(header.text[key] ?? key, values)
  app.imageUrl = arrays.image ? URL.createObjectURL(new Blob([arrays.image], { type: 'image/png' })) : null
  app.fit = `${Math.round((56 * header.size[0]) / header.size[1])}vh`

  // Look-ups. Slot 0 of step, layer and head is "all".
  const start = ({ step, layer, head }, unit) => {
    const { grid, heads } = layers[layer]
    const cells = grid[0] * grid[1]
    return (((step * (heads + 1) + Math.min(head, heads)) * units.length) + unit) * cells
  }
  app.grid = (layer) => layers[layer].grid
  app.value = (view, unit, cell) => HALF[arrays[`maps${view.layer}`][start(view, unit) + cell]]
  app.plane = (view, unit) => {
    const [rows, columns] = app.grid(view.layer)
    const from = start(view, unit)
    return Float32Array.from(arrays[`maps${view.layer}`].subarray(from, from + rows * columns), (bits) => HALF[bits])
  }
  app.share = ({ step, layer, head }, unit) =>
    arrays[`shares${layer}`][(step * (layers[layer].heads + 1) + head) * units.length + unit]
  app.shareIn = (view, unit, box) => meanIn(app.plane(view, unit), app.grid(view.layer), box)
  app.cellAt = (view, { at }) => {
    const grid = app.grid(view.layer)
    const [y, x] = [0, 1].map((axis) => Math.floor(at[axis] * grid[axis]))
    return [y / grid[0], x / grid[1], (y + 1) / grid[0], (x + 1) / grid[1]]
  }

  // The end of the colour scale: the largest value of any word, at any single step (or among the step
  // means while those are shown), in this layer and head or, with "everything", in all of them.
  const highest = {}
  const words = units.map((unit, i) => i).filter((i) => units[i].kind === 'word')
  const ranked = words.length ? words : units.map((_, i) => i)
  const maximum = (layer, head, mean) => (highest[[layer, head, mean]] ??= Math.max(...(mean || !steps.length ? [0] : steps.map((_, s) => s + 1)).map(
    (step) => Math.max(...ranked.map((unit) => largest(app.plane({ step, layer, head }, unit)))))))
  app.range = (view, unit) => {
    if (view.scale === 'map') {
      const values = app.plane(view, unit)
      return [smallest(values), largest(values)]
    }
    if (view.scale === 'shared') return [0, maximum(view.layer, view.head, view.step === 0)]
    return [0, Math.max(...layers.flatMap((layer, l) => Array.from({ length: layer.heads + 1 }, (_, head) => maximum(l, head, false))))]
  }

  app.stepName = (step) => step === 0 ? app.t('mean_of_steps', { n: layers[app.state.layer].averaged })
    : app.t('step_of', { i: steps[step - 1] + 1, n: header.total, time: header.times[step - 1]?.toFixed(2) ?? '–' })
  app.where = (view) => {
    const layer = layers[view.layer]
    const head = layer.heads === 0 ? '' : view.head === 0 ? ` · ${app.t('all_heads')}` : ` · ${app.t('head_n', { n: view.head })}`
    return `${app.stepName(view.step)} · ${layer.label}${head}`
  }

  app.title = (unit) => units[unit].label
  app.details = (view) => app.where(view)
  app.number = probability
  app.shown = (view) => (view.compare ? view.units : view.units.slice(0, 1))
  const clamp = (state) => {
    const bound = (v, n) => Math.max(0, Math.min(n, Number.isInteger(v) ? v : 0))
    state.units = [0, 1].map((i) => bound(state.units[i], units.length - 1))
    state.step = bound(state.step, steps.length)
    state.layer = bound(state.layer, layers.length - 1)
    state.head = bound(state.head, layers[state.layer].heads)
    return state
  }
  const address = header.lesson ? null : { numbers: steps.map((step) => step + 1),
    view: (state) => ({ ...state, words: state.compare ? state.units : [state.units[0]] }),
    state: ({ words, ...view }) => ({ ...view, units: [words[0], words[1] ?? header.first[1]], compare: words.length > 1, active: 0 }) }
  enliven(app, { fresh: { ...FRESH, units: [...header.first], ...header.lesson?.start }, passing: { box: null }, clamp, steps: steps.length, address })
  app.view = () => {
    const view = { ...app.state, ...app.peeked }
    if ('unit' in app.peeked) view.units = app.state.units.map((u, i) => (i === app.state.active ? app.peeked.unit : u))
    return clamp(view)
  }
  app.word = () => app.state.units[app.state.compare ? app.state.active : 0]
  app.choose = (unit) => app.set({ units: app.state.units.map((u, i) => (i === app.state.active ? unit : u)) })
  app.activate = (active) => { if (app.state.compare && app.state.active !== active) app.set({ active }) }
  // The curves over the steps: the chosen words strong, the other words faint.
  app.curves = (view) => {
    const chosen = app.shown(view)
    return units.map((unit, i) => i).filter((i) => units[i].kind === 'word' || chosen.includes(i)).map((i) => ({
      ...units[i], chosen: chosen.includes(i), values: steps.map((_, s) => app.share({ ...view, step: s + 1 }, i)) }))
  }
  app.readout = (view) => {
    const unit = view.units[view.compare ? view.active : 0]
    return `${units[unit].label} ${percent(app.share(view, unit))}`
  }
  app.films = filmsOf(app, header, (name) => arrays[name])
  const release = app.stop
  app.stop = () => { release(); if (app.imageUrl) URL.revokeObjectURL(app.imageUrl) }
  return app
}

function build(root, bytes, send) {
  const app = makeApp(unpack(bytes))
  app.send = send // not in a page without a server
  const { header, t } = app
  const stages = [makeStage(app, 0), makeStage(app, 1)]
  const chips = makeChips(app)
  const actions = send && header.actions?.length ? makeActions(app) : null
  const timeline = makeTimeline(app)
  const shares = makeShares(app)
  const bar = colourBar(t('colour_bar'))
  const layerStrip = strip({
    label: t('layer'), about: t('help_layer'), items: header.layers, onPick: (layer) => app.set({ layer, head: 0 }),
    onPeek: (layer) => app.peek(layer === null ? {} : { layer, head: 0 }),
  })
  const headHint = h('div', { className: 'hint' }, t('head_hint'))
  const headHome = h('div', { className: 'heads' }, h('div', { className: 'label' }, t('head'), help(t('help_head'))), headHint)
  const headStrips = header.layers.map((layer) => strip({
    label: t('head'), about: t('help_head'), items: [{ label: t('mean') }, ...Array.from({ length: layer.heads }, (_, i) => ({ label: String(i + 1), title: t('head_n', { n: i + 1 }) }))],
    onPick: (head) => app.set({ head }), onPeek: (head) => app.peek(head === null ? {} : { head }),
  }))
  headStrips.forEach((one) => headHome.append(one.root))

  const opacity = h('input', { type: 'range', className: 'opacity', min: 0, max: 1, step: 0.05, 'aria-label': t('opacity'),
    oninput: () => app.set({ opacity: Number(opacity.value) }) })
  const choice = (label, name, options) => segmented(label, options, () => app.state[name],
    (value) => app.set({ [name]: value === 'true' ? true : value === 'false' ? false : value }))
  const scale = choice(t('scale'), 'scale', [['shared', t('scale_shared'), t('scale_shared_help')],
    ['everything', t('scale_all'), t('scale_all_help')], ['map', t('scale_map'), t('scale_map_help')]])
  const cells = choice(t('cells'), 'smooth', [['false', t('cells_exact'), t('cells_exact_help')], ['true', t('cells_smooth'), t('cells_smooth_help')]])
  const veil = choice(t('low_values'), 'fade', [['true', t('low_fade')], ['false', t('low_even')]])
  const ground = choice(t('background'), 'background', [...['seen', 'expected'].filter((name) => name in app.films), 'final'].map((name) =>
    [name, t(`background_${name}`), t(`background_${name}_help`)]))
  const compare = h('button', { type: 'button', className: 'toggle compare', title: t('compare_help'),
    onclick: () => app.set({ compare: !app.state.compare, active: app.state.compare ? 0 : 1 }) }, t('compare'))
  const field = (label, control) => h('label', { className: 'field' }, h('span', { className: 'label' }, label), control)
  const group = (label, control) => h('div', { className: 'field' }, h('span', { className: 'label' }, label), control)
  chips.root.append(compare)
  const bare = h('button', { type: 'button', className: 'toggle bare', title: t('bare_help'),
    onclick: () => app.set({ bare: !app.state.bare }) }, t('bare'))
  const settings = h('div', { className: 'settings' }, field(t('opacity'), opacity), group(t('map'), bare), group(t('low_values'), veil.root),
    group(t('cells'), cells.root), Object.keys(app.films).length ? group(t('background'), ground.root) : null)

  root.style.setProperty('--fit', app.fit)
  root.replaceChildren(chips.root, actions?.root ?? '', h('div', { className: 'columns' },
    h('div', { className: 'left' },
      h('div', { className: 'stages' }, stages[0].root, stages[1].root),
      h('div', { className: 'scalerow' }, bar.root, scale.root), settings),
    h('div', { className: 'right' }, timeline.root, h('div', { className: 'pickers' }, layerStrip.root, headHome), shares.root,
      h('div', { className: 'hint keys' }, t('keys')))))
  hideParts(root, header)

  app.render = () => {
    const view = app.view()
    const [unit] = view.compare ? [view.units[view.active]] : view.units
    const ranges = view.units.map((u) => app.range(view, u))
    stages.forEach((stage, i) => {
      stage.root.hidden = i === 1 && !view.compare
      if (!stage.root.hidden) stage.draw(view, view.units[i], ranges[i])
    })
    const over = app.hovered
    const shown = over ? (view.compare ? over.stage : 0) : view.compare ? view.active : 0
    const values = stages.map((stage, i) => (stage.root.hidden ? null : stage.point(view, view.units[i], over)))
    const range = ranges[shown]
    const plane = app.plane(view, view.units[shown])
    const clipped = plane.some((value) => value > range[1] * 1.001)
    bar.draw(range, view.fade ? app.tables.faded : app.tables.even, t(`scale_${view.scale}_caption`), clipped)
    bar.mark(over ? values[shown] : null, range)
    chips.update(view)
    actions?.update()
    timeline.root.hidden = !header.steps.length
    if (header.steps.length) timeline.update(view, app.playing())
    const thumb = (at) => (i, canvas) => {
      const there = { ...view, ...at(i) }
      paint(canvas, app.plane(there, unit), app.grid(there.layer), app.range({ ...there, scale: view.scale }, unit), app.tables.even)
    }
    layerStrip.update(app.state.layer, view.layer, thumb((layer) => ({ layer, head: 0 })))
    layerStrip.note.textContent = header.layers[view.layer].title
    headStrips.forEach((one, layer) => { one.root.hidden = layer !== view.layer || header.layers[layer].heads === 0 })
    const single = header.layers[view.layer].heads > 0
    headHome.hidden = header.layers.every((layer) => layer.heads === 0)
    headHome.firstChild.hidden = headHint.hidden = single
    headStrips[view.layer].update(app.state.head, view.head, thumb((head) => ({ head })))
    shares.update(view, over)
    opacity.value = view.opacity
    for (const one of [scale, cells, veil, ground]) one.update()
    compare.setAttribute('aria-pressed', String(view.compare))
    bare.setAttribute('aria-pressed', String(view.bare))
    root.classList.toggle('comparing', view.compare)
    Object.assign(root.dataset, { ready: 'true', word: header.units[unit].label, step: view.step, layer: view.layer, head: view.head })
  }
  const turn = (value, by, count) => (value + by + count) % count
  const heads = () => header.layers[app.state.layer].heads + 1
  onKeys(root, {
    ArrowLeft: () => app.set({ step: Math.max(Math.min(1, header.steps.length), app.state.step - 1) }),
    ArrowRight: () => app.set({ step: Math.min(header.steps.length, app.state.step + 1) }),
    ArrowUp: () => app.set({ layer: turn(app.state.layer, -1, header.layers.length), head: 0 }),
    ArrowDown: () => app.set({ layer: turn(app.state.layer, 1, header.layers.length), head: 0 }),
    '[': () => app.set({ head: turn(app.state.head, -1, heads()) }),
    ']': () => app.set({ head: turn(app.state.head, 1, heads()) }),
    0: () => app.set({ step: 0 }), Escape: () => app.set({ box: null }), p: () => app.play(),
    m: () => app.set({ bare: !app.state.bare }),
  })
  app.render()
  return app
}
