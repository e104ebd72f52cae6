"""Events as Parquet files, partitioned by stream and hour, as DuckDB, pandas and Spark read them.

SELECT stream, hour, count(*) FROM read_parquet('events/**/*.parquet', hive_partitioning=true) GROUP BY ALL;
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sinks.address import SinkAddress
from sinks.permissions import create_private
from sinks.sink import SinkAddressError, SinkError
from sinks.worker import SinkWorker

if TYPE_CHECKING:
    from sinks.event import Event

_ROWS = 20_000
_SECONDS = 60.0


class ParquetSink:
    """Writes one file for each stream and hour of a batch; a file appears whole or not at all.

    Batches are made large by waiting (see `Sink.linger_s`), since many small files are slow to read; meanwhile the
    events are safe in the spool. A batch that is sent again after a crash may leave the same ids in two files.
    """

    def __init__(self, folder: str | Path, *, rows: int = _ROWS, seconds: float = _SECONDS) -> None:
        self.batch_events = rows
        self.linger_s = seconds
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self._folder, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise _cannot_write(self._folder, error) from None
        self._worker = SinkWorker("sink-parquet")

    async def send_batch(self, events: Sequence[Event]) -> None:
        await self._worker.call(self._write_files, events)

    async def aclose(self) -> None:
        await self._worker.aclose()

    def _write_files(self, events: Sequence[Event]) -> None:
        parts: dict[tuple[str, str], list[Event]] = {}
        for event in events:
            parts.setdefault((event.data.stream, event.time[:13]), []).append(event)
        for (stream, hour), members in parts.items():
            folder = self._folder / f"stream={quote(stream, safe='')}" / f"hour={hour}"
            first = members[0]
            stamp = first.time.replace(":", "").replace("-", "")
            path = folder / f"{stamp}-{first.data.run}-{first.sequence}.parquet"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _write_table(path, members)
            except OSError as error:
                raise _cannot_write(path, error) from None


def open_parquet(address: SinkAddress) -> ParquetSink:
    """`parquet:FOLDER?rows=20000&seconds=60`: a file is written when so many events wait, or after so long."""
    rows = address.options.whole("rows", _ROWS, least=1)
    seconds = address.options.number("seconds", _SECONDS)
    address.options.finish()
    if not address.path:
        raise SinkAddressError("parquet: needs a folder: write parquet:events")
    try:
        import pyarrow.parquet  # noqa: F401  imported here, so that its absence is reported at start
    except ImportError:
        raise SinkAddressError("the parquet sink needs pyarrow: pip install 'groundstream[parquet]'") from None
    return ParquetSink(address.path, rows=rows, seconds=seconds)


def _write_table(path: Path, events: Sequence[Event]) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = [
        ("id", pyarrow.string()),
        ("run", pyarrow.int64()),
        ("sequence", pyarrow.int64()),
        ("type", pyarrow.string()),
        ("subject", pyarrow.string()),
        ("time", pyarrow.timestamp("us", tz="UTC")),
        ("track", pyarrow.int64()),
        ("score", pyarrow.float64()),
        *((name, pyarrow.float64()) for name in ("x1", "y1", "x2", "y2")),
        ("zone", pyarrow.string()),
        ("line", pyarrow.string()),
        ("queries", pyarrow.list_(pyarrow.string())),
        ("event", pyarrow.string()),
    ]
    rows: list[dict[str, Any]] = [_row_of(event) for event in events]
    table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(columns))
    unfinished = path.with_suffix(".unfinished")
    create_private(unfinished)
    pyarrow.parquet.write_table(table, unfinished, compression="zstd")
    os.replace(unfinished, path)


def _row_of(event: Event) -> dict[str, Any]:
    data = event.data
    row: dict[str, Any] = {
        "id": event.id,
        "run": data.run,
        "sequence": int(event.sequence),
        "type": event.type.value,
        "subject": event.subject,
        "time": datetime.fromisoformat(event.time),
        "zone": data.zone.id if data.zone else None,
        "line": data.line.id if data.line else None,
        "queries": event.queries,
        "event": event.to_json().decode(),
    }
    if data.track is not None:
        row |= {"track": data.track.number, "score": data.track.score, **data.track.box.model_dump()}
    return row


def _cannot_write(path: Path, error: OSError) -> SinkError:
    reason = error.strerror or str(error)
    return SinkError(f"{path} cannot be written ({reason}): check the path, its rights and the space on the disk")
