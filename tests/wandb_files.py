"""What an offline run of wandb left: its file read back, record by record.

The file is LevelDB's log format (blocks of 32 KiB, each record in parts with checksum, length and kind) with
the header ":W&B"; a record is a protobuf message of the package itself.
"""

import contextlib
import json
import struct
import time
import zlib
from pathlib import Path

BLOCK, HEADER, PART = 32768, struct.Struct("<4sHB"), struct.Struct("<IHB")


def messages(path):
    """Yields the bytes of every record of a .wandb file; every part's checksum must be right."""
    data = Path(path).read_bytes()
    assert HEADER.unpack_from(data)[0] == b":W&B"
    place, record = HEADER.size, b""
    while place + PART.size <= len(data):
        if BLOCK - place % BLOCK < PART.size:  # the rest of a block is empty
            place += BLOCK - place % BLOCK
            continue
        check, length, kind = PART.unpack_from(data, place)
        part = data[place + PART.size : place + PART.size + length]
        assert len(part) == length and check == zlib.crc32(bytes([kind]) + part)
        record, place = record + part, place + PART.size + length
        if kind in (1, 4):  # whole, last
            yield record
            record = b""


class OfflineRun:
    """An offline run.

    Args:
        folder: Its own, `wandb/offline-run-*`.

    Attributes:
        start: The record that names it.
        config: Its configuration.
        rows: Its history, a dictionary for each call.
        axes: By name or pattern of a metric, what it is drawn over.
        artifacts: By name, aliases and the names of their files.
        exit_code: What it ended with.
    """

    def __init__(self, folder):
        from wandb.proto import wandb_internal_pb2

        (path,) = Path(folder).glob("*.wandb")
        self.start, self.exit_code = None, None
        self.config, self.rows, self.axes, self.artifacts = {}, [], {}, {}
        for message in messages(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.start = self.start or record.run
                self._configure(record.run.config)
            elif kind == "config":
                self._configure(record.config)
            elif kind == "history":
                self.rows.append(
                    {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                )
            elif kind == "metric":
                metric = record.metric
                self.axes[metric.name or metric.glob_name] = metric.step_metric
            elif kind == "artifact":
                found = record.artifact
                names = [entry.path for entry in found.manifest.contents]
                self.artifacts[found.name] = (list(found.aliases), names)
            elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
                found = record.request.log_artifact.artifact
                names = [entry.path for entry in found.manifest.contents]
                self.artifacts[found.name] = (list(found.aliases), names)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def _configure(self, config):
        self.config |= {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in config.update}

    def values(self, name):
        """Returns what was logged under a name, each with the examples seen."""
        return [(row["examples_seen"], row[name]) for row in self.rows if name in row]


def read_whole(folder, patience=30.0):
    """Returns an offline run once it is whole: `finish` returns before wandb's own process is done."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with contextlib.suppress(AssertionError, struct.error):  # cut short
            found = OfflineRun(folder)
            if found.exit_code is not None:
                return found
        time.sleep(0.1)
    return OfflineRun(folder)
