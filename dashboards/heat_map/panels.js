// The controls around the picture: the prompt as chips, the steps with their curve, the shares.

// The raw prompt with its words as buttons (punctuation stays plain text), then the tokens that are no words.
function makeChips(app) {
  const { header, t } = app
  const buttons = []
  const chip = (unit) => {
    const { label, text, occurrence, colour, title } = header.units[unit]
    const button = h('button', {
      type: 'button', className: 'chip', title, data: { unit, word: label }, onclick: () => app.choose(unit),
      onpointerenter: (event) => event.pointerType === 'mouse' && app.peek({ unit }), onpointerleave: () => app.peek({}),
    }, text, occurrence ? h('sub', {}, occurrence) : null)
    button.style.setProperty('--unit', colour)
    buttons.push(button)
    return button
  }
  const prompt = h('div', { className: 'prompt', role: 'group', 'aria-label': t('words'), lang: 'zh' })
  const others = h('div', { className: 'others', role: 'group', 'aria-label': t('not_words') },
    h('span', { className: 'label' }, t('not_words'), help(t('help_token'))))
  const characters = Array.from(header.prompt ?? '') // spans count code points
  // Text between the words; words that no map tells about are struck through.
  const plain = (from, to) => {
    for (const { span, title } of header.lost.filter(({ span }) => span[0] >= from && span[1] <= to)) {
      prompt.append(h('span', { className: 'gap' }, characters.slice(from, span[0]).join('')),
        h('s', { className: 'gap', title }, characters.slice(...span).join('')))
      from = span[1]
    }
    prompt.append(h('span', { className: 'gap' }, characters.slice(from, to).join('')))
  }
  let at = 0
  header.units.forEach((unit, i) => {
    if (unit.kind !== 'word') return void others.append(chip(i))
    plain(at, unit.span[0])
    // A comma stays with the word before it: no line begins with one.
    const stop = /^[，。、；：！？）》」』”’,.;:!?)]+/u.exec(characters.slice(unit.span[1]).join(''))?.[0] ?? ''
    prompt.append(h('span', { className: 'together' }, chip(i), h('span', { className: 'gap' }, stop)))
    at = unit.span[1] + Array.from(stop).length
  })
  plain(at, characters.length)
  if (!header.prompt) prompt.append(h('span', { className: 'gap' }, t(header.prompt === null ? 'unknown_prompt' : 'empty_prompt')))
  const root = h('div', { className: 'chips' }, prompt, others.childElementCount > 1 ? others : null)
  return {
    root,
    update(view) {
      const chosen = app.shown(app.state)
      const shown = app.shown(view)
      for (const button of buttons) {
        const unit = Number(button.dataset.unit)
        button.setAttribute('aria-pressed', String(chosen.includes(unit)))
        button.classList.toggle('shown', shown.includes(unit))
      }
    },
  }
}

// What can be done with the chosen word: each button sends {unit, action, text} to the server. Expects app.send.
function makeActions(app) {
  const { header, t } = app
  const act = (action, text = '') => app.send({ unit: app.word(), action, text })
  const label = h('span', { className: 'label' })
  const button = (name) => h('button', { type: 'button', className: 'toggle', title: t(`action_${name}_help`), data: { action: name },
    onclick: () => act(name) }, t(`action_${name}`))
  const text = h('input', { type: 'text', className: 'swap', maxLength: 40, placeholder: t('action_swap'), 'aria-label': t('action_swap_help'),
    title: t('action_swap_help'), onkeydown: (event) => {
      event.stopPropagation() // the letters are no keys of the page
      if (event.key === 'Enter' && text.value.trim()) act('swap', text.value.trim())
    } })
  const root = h('div', { className: 'actions', role: 'group' }, label,
    ...header.actions.map((name) => (name === 'swap' ? text : button(name))))
  return {
    root,
    update() {
      const { kind, label: word } = header.units[app.word()]
      root.hidden = kind !== 'word'
      label.textContent = t('action_word', { word })
    },
  }
}

// The films that a payload has: what the model saw and what it expected, by name. `header.films`: their sizes.
function filmsOf(app, { films }, frames, before = '') {
  return Object.fromEntries(Object.entries(films).map(([name, size]) => [name, { frames: frames(name), size,
    name: app.t(`film_${name}`), label: before + app.t(`background_${name}_help`) }]))
}

// One film, step by step, in a row under the curve.
function makeFilm({ frames, size, name, label }, count) {
  const shown = Math.min(count, 24) // of many steps an even choice
  const steps = Array.from({ length: shown }, (_, i) => 1 + Math.floor(((i + 0.5) * count) / shown))
  const cells = steps.map((step) => {
    const canvas = h('canvas', { data: { step } })
    paintFrame(canvas, frames, size, step)
    return canvas
  })
  return {
    root: h('div', { className: 'film', role: 'img', 'aria-label': label, title: label }, h('span', { className: 'side' }, name), ...cells),
    update(step) {
      const nearest = steps.reduce((a, b) => (Math.abs(b - step) < Math.abs(a - step) ? b : a), steps[0])
      cells.forEach((cell, i) => cell.classList.toggle('on', step > 0 && steps[i] === nearest))
    },
  }
}

const PLAY = 'M4 2.5v11l9-5.5z'
const PAUSE = 'M4 3h3v10H4zM9 3h3v10H9z'

// Play, the slider, "all steps", and above them curves over the steps and films on the same axis. Expects app.curves
// (a list of {values, colour, chosen, dashes}), app.readout and app.films.
function makeTimeline(app) {
  const { header, t } = app
  const count = header.steps.length
  const shape = svg('path', { d: PLAY, fill: 'currentColor' })
  const play = h('button', { type: 'button', className: 'icon play', onclick: () => app.play() })
  play.append(svg('svg', { viewBox: '0 0 16 16', width: 16, height: 16, 'aria-hidden': 'true' }, shape))
  const slider = h('input', {
    type: 'range', className: 'step', min: 1, max: count, step: 1, 'aria-label': t('step'),
    oninput: () => app.set({ step: Number(slider.value) }),
  })
  const all = h('button', { type: 'button', className: 'toggle all', onclick: () => app.set({ step: app.state.step ? 0 : Number(slider.value) }) },
    t('all_steps'))
  const chart = svg('svg', { class: 'chart', preserveAspectRatio: 'none', viewBox: '0 0 100 100', role: 'img', 'aria-label': t('curve') })
  const line = svg('line', { class: 'now', y1: 0, y2: 100, 'vector-effect': 'non-scaling-stroke' })
  const top = h('span', { className: 'top' })
  const bottom = h('span', { className: 'bottom' }, '0')
  const readout = h('span', { className: 'note' })
  const plot = h('div', { className: 'plot' }, chart, top, bottom)
  const films = Object.values(app.films).map((one) => makeFilm(one, count))
  const root = h('div', { className: 'timeline' },
    h('div', { className: 'label' }, t('curve'), help(t('help_step')), readout, all), plot, ...films.map((film) => film.root),
    h('div', { className: 'transport' }, play, slider),
    h('div', { className: 'ends' }, h('span', {}, t('first_step')), h('span', {}, t('last_step'))))
  root.style.setProperty('--steps', count)
  // Each step has a column of its own: the curve, the film and the slider's thumb meet at its middle.
  const x = (slot) => (100 * (slot - 0.5)) / count
  const nearest = (event) => {
    const area = plot.getBoundingClientRect()
    return 1 + Math.max(0, Math.min(count - 1, Math.floor(((event.clientX - area.left) / area.width) * count)))
  }
  for (const axis of [plot, ...films.map((film) => film.root)]) {
    axis.onpointermove = (event) => (event.buttons ? app.set({ step: nearest(event) }) : app.peek({ step: nearest(event) }))
    axis.onpointerdown = (event) => app.set({ step: nearest(event) })
    axis.onpointerleave = () => app.peek({})
  }

  return {
    root, slider,
    update(view, playing) {
      shape.setAttribute('d', playing ? PAUSE : PLAY)
      play.setAttribute('aria-label', t(playing ? 'pause' : 'play'))
      play.title = t(playing ? 'pause' : 'play')
      if (view.step) slider.value = view.step
      slider.classList.toggle('idle', view.step === 0)
      slider.setAttribute('aria-valuetext', app.stepName(view.step))
      all.setAttribute('aria-pressed', String(app.state.step === 0))
      line.setAttribute('x1', x(view.step))
      line.setAttribute('x2', x(view.step))
      line.style.display = view.step ? '' : 'none'
      for (const film of films) film.update(view.step)
      readout.textContent = `${app.stepName(view.step)} · ${app.readout(view)}`
      const curves = app.curves(view)
      const highest = Math.max(1e-9, ...curves.flatMap(({ values }) => values.filter(Number.isFinite)))
      top.textContent = percent(highest)
      chart.replaceChildren(...curves.map(({ values, colour, chosen, dashes }) => svg('polyline', {
        points: values.map((v, s) => `${x(s + 1)},${97 - (94 * v) / highest}`).join(' '), style: `--unit: ${colour}`,
        'stroke-dasharray': dashes, class: chosen ? 'chosen' : '', 'vector-effect': 'non-scaling-stroke',
      })).sort((a, b) => a.classList.contains('chosen') - b.classList.contains('chosen')), line)
    },
  }
}

// Where the attention of a region went: the whole picture, the cell under the pointer, or a dragged box.
function makeShares(app) {
  const { header, t } = app
  const title = h('span', {})
  const clear = h('button', { type: 'button', className: 'clear', title: t('clear_box'), 'aria-label': t('clear_box'),
    onclick: () => app.set({ box: null }) }, '✕')
  const stack = h('div', { className: 'stack', role: 'img' })
  const parts = header.units.map((unit) => h('div', { title: unit.label, style: `--unit: ${unit.colour}` }))
  stack.append(...parts)
  const rows = header.units.map((unit, i) => {
    const bar = h('i', { style: `--unit: ${unit.colour}` })
    const value = h('span', { className: 'value' })
    const times = h('span', { className: 'times' })
    const root = h('button', { type: 'button', className: `row ${unit.kind}`, data: { unit: i }, onclick: () => app.choose(i),
      onpointerenter: (event) => event.pointerType === 'mouse' && app.peek({ unit: i }), onpointerleave: () => app.peek({}) },
    h('span', { className: 'name' }, unit.label), h('span', { className: 'track' }, bar), value, times)
    return { root, bar, value, times, i }
  })
  const rest = h('span', { className: 'value' })
  const restRow = h('div', { className: 'row rest', title: t('rest_help') }, h('span', { className: 'name' }, t('rest')),
    h('span', { className: 'track' }), rest)
  const list = h('div', { className: 'rows' }, ...rows.map((row) => row.root), restRow)
  const root = h('div', { className: 'shares' }, h('div', { className: 'label' }, title, clear), stack, list,
    h('div', { className: 'hint' }, t('shares_hint')))
  let order = ''
  return {
    root,
    update(view, pointer) {
      const region = pointer && !view.box ? app.cellAt(view, pointer) : view.box
      const whole = header.units.map((_, i) => app.share(view, i))
      const here = region ? header.units.map((_, i) => app.shareIn(view, i, region)) : whole
      const [rowsOfGrid, columns] = app.grid(view.layer)
      const last = (fraction, n) => Math.round(fraction * n) - 1
      title.textContent = !region ? t('share_whole')
        : view.box ? t('share_box', { y: `${Math.round(region[0] * rowsOfGrid)}–${last(region[2], rowsOfGrid)}`,
          x: `${Math.round(region[1] * columns)}–${last(region[3], columns)}` })
          : t('share_cell', { y: Math.round(region[0] * rowsOfGrid), x: Math.round(region[1] * columns) })
      clear.hidden = !view.box
      const highest = Math.max(1e-9, ...here.filter((_, i) => header.units[i].kind === 'word'))
      rows.forEach(({ root: row, bar, value, times, i }) => {
        bar.style.width = `${Math.min(100, (100 * here[i]) / highest)}%`
        value.textContent = percent(here[i])
        const ratio = whole[i] > 0 ? here[i] / whole[i] : NaN
        times.textContent = region && Number.isFinite(ratio) ? `×${ratio.toPrecision(2)}` : ''
        times.classList.toggle('more', ratio > 1.25)
        row.classList.toggle('shown', app.shown(view).includes(i))
        row.dataset.share = here[i]
        parts[i].style.width = `${100 * here[i]}%`
      })
      // What went to no text that was kept: in joint attention the picture's own cells.
      const left = 1 - here.reduce((sum, one) => sum + one, 0)
      restRow.hidden = !(left > 0.005)
      restRow.dataset.share = left
      rest.textContent = percent(left)
      stack.setAttribute('aria-label', header.units.map((u, i) => `${u.label} ${percent(here[i])}`).join(', '))
      // Only a box reorders the list: under a moving pointer the rows must stand still.
      const sorted = view.box ? [...rows].sort((a, b) =>
        (header.units[a.i].kind !== 'word') - (header.units[b.i].kind !== 'word') || here[b.i] - here[a.i]) : rows
      const key = sorted.map((row) => row.i).join()
      if (key !== order) list.append(...sorted.map((row) => row.root), restRow)
      order = key
    },
  }
}
