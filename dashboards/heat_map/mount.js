// Joins either component to Streamlit. Expects `build(root, bytes, send)`, which returns an object with
// stop(). `send(action)` makes Python run the page with that action.

const living = new WeakMap()

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector('.toushi')
  const before = living.get(parentElement)
  // A rerun or a change of theme with the same payload must not reset what the reader is doing.
  const { digest } = unpackHeader(data)
  if (before?.digest !== digest) {
    before?.app.stop()
    living.set(parentElement, { digest, app: build(root, data, (action) => setTriggerValue('action', action)) })
    // The keys work at once, unless somebody is typing elsewhere or has just changed something above.
    if (!before && !document.activeElement?.matches('input, textarea')) root.focus({ preventScroll: true })
  }
  return () => {
    living.get(parentElement)?.app.stop()
    living.delete(parentElement)
  }
}
