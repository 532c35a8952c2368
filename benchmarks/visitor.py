"""A visitor of the explorer without a browser: a websocket that speaks Streamlit's protobuf, as a page does.

It opens a page, fills the form in, presses the button, and runs the fragments again that ask for it.
"""

import asyncio
import time
from collections.abc import Callable

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.Element_pb2 import Element
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from toushi.dashboards.heat_map.payload import unpack_header

ENGLISH = "lang=en"


class Visitor:
    """What one session of the explorer shows. Use it as `async with Visitor(port) as visitor`."""

    def __init__(self, port: int):
        self.address = f"ws://127.0.0.1:{port}/_stcore/stream"
        self.received = 0  # bytes
        self.prompts: list[str | None] = []  # of the pictures that came
        self.fields: dict[str, str] = {}  # label -> id of a widget
        self.progress = ""
        self.errors: list[str] = []
        self.runs = 0  # that have finished
        self._page = ""
        self._timers: dict[str, asyncio.Task] = {}
        self._changed = asyncio.Event()

    async def __aenter__(self) -> "Visitor":
        # Without `ping_interval`: a busy machine answers late.
        self.socket: ClientConnection = await connect(
            self.address, subprotocols=[Subprotocol("streamlit")], max_size=None, ping_interval=None
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Ends as a browser that is killed: without a word."""
        for task in [*self._timers.values(), self._reader]:
            task.cancel()
        self.socket.transport.abort()

    async def open(self, page: str = "", query: str = ENGLISH) -> None:
        before, message = self.runs, BackMsg()
        message.rerun_script.query_string, message.rerun_script.page_name = query, page
        await self.socket.send(message.SerializeToString())
        await self.wait(lambda: self.runs > before)

    async def order(self, prompt: str, **numbers: float) -> None:
        """Fills the form in and presses its button."""
        states = [WidgetState(id=self.fields["Prompt"], string_value=prompt)]
        states += [
            WidgetState(id=self.fields[name.capitalize()], double_value=value) for name, value in numbers.items()
        ]
        await self._run(states=[*states, WidgetState(id=self.fields["Draw and record"], trigger_value=True)])

    async def wait(self, condition: Callable[[], bool], seconds: float = 300) -> float:
        """Waits until it holds; comes back with the seconds that it took."""
        begin = time.perf_counter()
        while not condition():
            if self._reader.done():
                self._reader.result()
                raise ConnectionError("the explorer has closed the connection")
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), seconds)
        return time.perf_counter() - begin

    async def _run(self, fragment: str = "", states: list[WidgetState] | None = None) -> None:
        message = BackMsg()
        state = message.rerun_script
        state.page_script_hash, state.fragment_id = self._page, fragment
        state.is_auto_rerun, state.query_string = bool(fragment), ENGLISH
        state.widget_states.widgets.extend(states or [])
        await self.socket.send(message.SerializeToString())

    async def _repeat(self, fragment: str, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            await self._run(fragment)

    async def _read(self) -> None:
        try:
            async for data in self.socket:
                assert isinstance(data, bytes)
                self.received += len(data)
                self._take(ForwardMsg.FromString(data))
                self._changed.set()
        finally:
            self._changed.set()

    def _take(self, message: ForwardMsg) -> None:
        kind = message.WhichOneof("type")
        if kind == "new_session":
            self._page = message.new_session.page_script_hash
            if not message.metadata.run.fragment_ids:  # the whole page runs, and names its fragments anew
                self._stop(list(self._timers))
        elif kind == "stop_auto_rerun":
            self._stop(list(message.stop_auto_rerun.fragment_ids))
        elif kind == "auto_rerun":
            again = message.auto_rerun
            if again.fragment_id not in self._timers:
                self._timers[again.fragment_id] = asyncio.create_task(self._repeat(again.fragment_id, again.interval))
        elif kind == "script_finished":
            self.runs += 1
        elif kind == "delta" and message.delta.WhichOneof("type") == "new_element":
            self._show(message.delta.new_element)

    def _stop(self, fragments: list[str]) -> None:
        for fragment in fragments:
            if timer := self._timers.pop(fragment, None):
                timer.cancel()

    def _show(self, element: Element) -> None:
        kind = element.WhichOneof("type") or "empty"
        shown = getattr(element, kind)
        if kind in ("text_area", "number_input", "button"):
            self.fields[shown.label] = shown.id
        elif kind == "progress":
            self.progress = shown.text
        elif kind == "bidi_component":
            self.prompts.append(unpack_header(shown.bytes)["prompt"])
        elif kind == "exception":
            self.errors.append(shown.message)
        elif kind == "alert":
            self.errors.append(shown.body)
