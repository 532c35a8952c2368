// One picture with one map over it: the overlay, the hovered cell and its value, the dragged box.

function makeStage(app, index) {
  const { header, t } = app
  const image = app.imageUrl
    ? h('img', { src: app.imageUrl, alt: header.alt, draggable: false })
    : h('div', { className: 'blank' }, t('no_image'))
  const preview = h('canvas', { className: 'preview', hidden: true })
  const heat = h('canvas', { className: 'heat', role: 'img' })
  const cell = h('div', { className: 'cell', hidden: true })
  const box = h('div', { className: 'box', hidden: true })
  const tip = h('div', { className: 'tip', hidden: true })
  const frame = h('div', { className: 'frame', style: { aspectRatio: header.size.join('/') } },
    image, preview, heat, cell, box, tip)
  const title = h('span', { className: 'title' })
  const details = h('span', { className: 'details' })
  const root = h('figure', { className: 'stage', data: { stage: index }, onclick: () => app.activate(index) },
    h('figcaption', {}, title, details), h('div', { className: 'fit' }, frame))

  let drag = null
  const fraction = (event) => {
    const area = frame.getBoundingClientRect()
    const inside = (v) => Math.max(0, Math.min(0.999999, v))
    return [inside((event.clientY - area.top) / area.height), inside((event.clientX - area.left) / area.width)]
  }
  // A box always covers whole cells of the grid that is shown.
  const covering = (a, b) => {
    const grid = app.grid(app.view().layer)
    return [0, 1].map((axis) => Math.floor(Math.min(a[axis], b[axis]) * grid[axis]) / grid[axis]).concat(
      [0, 1].map((axis) => (Math.floor(Math.max(a[axis], b[axis]) * grid[axis]) + 1) / grid[axis]))
  }
  frame.onpointerdown = (event) => {
    if (event.button !== 0) return
    drag = { from: fraction(event), x: event.clientX, y: event.clientY, moved: false }
    frame.setPointerCapture(event.pointerId)
  }
  frame.onpointermove = (event) => {
    const at = fraction(event)
    if (drag && (drag.moved || Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 4)) {
      drag.moved = true
      app.set({ box: covering(drag.from, at) })
    }
    app.hover({ at, stage: index })
  }
  frame.onpointerup = () => {
    if (drag && !drag.moved) app.set({ box: null })
    drag = null
  }
  frame.onpointercancel = () => { drag = null }
  frame.onpointerleave = () => app.hover(null)

  const place = (element, [top, left, bottom, right]) => {
    element.hidden = false
    Object.assign(element.style, {
      top: `${100 * top}%`, left: `${100 * left}%`, height: `${100 * (bottom - top)}%`, width: `${100 * (right - left)}%`,
    })
  }

  return {
    root, heat,
    draw(view, unit, range) {
      const grid = app.grid(view.layer)
      const values = app.plane(view, unit)
      paint(heat, values, grid, range, view.fade ? app.tables.faded : app.tables.even)
      heat.style.opacity = view.bare ? 0 : view.opacity
      heat.style.imageRendering = view.smooth ? 'auto' : 'pixelated'
      const name = header.units[unit]
      title.textContent = app.title(unit)
      title.style.setProperty('--unit', name.colour)
      details.textContent = app.details(view)
      let peak = 0
      for (let i = 1; i < values.length; i++) if (values[i] > values[peak]) peak = i
      heat.setAttribute('aria-label', t('map_alt', {
        word: name.label, where: app.where(view), value: probability(values[peak]),
        y: Math.floor(peak / grid[1]), x: peak % grid[1],
      }))
      Object.assign(heat.dataset, { word: name.label, step: view.step, layer: view.layer, head: view.head,
        rows: grid[0], columns: grid[1], low: range[0], high: range[1] })
      heat.drawn = { values, grid, range }
      this.background(view)
      root.classList.toggle('active', view.compare && view.active === index)
      if (view.box) place(box, view.box)
      else box.hidden = true
    },
    background(view) {
      const film = view.background in app.films ? view.background : 'expected'
      // Without a finished picture the last preview stands in for it.
      const step = view.background !== 'final' && view.step ? view.step : app.imageUrl ? 0 : header.steps.length
      preview.hidden = !app.films[film] || step === 0
      if (preview.hidden || preview.shown === film + step) return
      preview.shown = film + step
      preview.classList.toggle('seen', film === 'seen')
      paintFrame(preview, app.films[film].frames, app.films[film].size, step)
    },
    point(view, unit, pointer) {
      cell.hidden = tip.hidden = !pointer
      if (!pointer) return null
      const grid = app.grid(view.layer)
      const [y, x] = [0, 1].map((axis) => Math.floor(pointer.at[axis] * grid[axis]))
      place(cell, [y / grid[0], x / grid[1], (y + 1) / grid[0], (x + 1) / grid[1]])
      const value = app.value(view, unit, y * grid[1] + x)
      tip.replaceChildren(
        h('b', {}, app.number(value)),
        h('span', {}, `${header.units[unit].label} · ${t('cell', { y, x })}`))
      tip.classList.toggle('left', pointer.at[1] > 0.6)
      tip.classList.toggle('up', pointer.at[0] > 0.8)
      Object.assign(tip.style, { top: `${100 * pointer.at[0]}%`, left: `${100 * pointer.at[1]}%` })
      Object.assign(tip.dataset, { value, y, x })
      return value
    },
  }
}
