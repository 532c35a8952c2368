// Joins either component to Streamlit. Expects `build(root, bytes)`, which returns an object with stop().

const living = new WeakMap()

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector('.toushi')
  const before = living.get(parentElement)
  // A rerun or a change of theme with the same payload must not reset what the reader is doing.
  const { digest } = unpackHeader(data)
  if (before?.digest !== digest) {
    before?.app.stop()
    living.set(parentElement, { digest, app: build(root, data) })
    // The keys work at once, unless somebody is typing elsewhere or has just changed something above.
    if (!before && !document.activeElement?.matches('input, textarea')) root.focus({ preventScroll: true })
  }
  return () => {
    living.get(parentElement)?.app.stop()
    living.delete(parentElement)
  }
}
