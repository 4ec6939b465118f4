"""Power loss, replayed: records what a program does to the disk, then gives each disk it could have left.

trace = record([sys.executable, script, str(root)], root, workdir=tmp_path)
for number, image in enumerate(trace.points(rng=random.Random(1), torn_max=8)):
    image.write_to(tmp_path / str(number))
    ...  # open what is there; everything in image.acknowledged must be found
"""

from .trace import Content, Image, NotReplayable, Op, RecordingFailed, Trace, record

__all__ = ["Content", "Image", "NotReplayable", "Op", "RecordingFailed", "Trace", "record"]
