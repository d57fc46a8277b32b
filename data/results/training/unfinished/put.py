"""Put what unfinished trainings and sweeps have made where `l2l` looks for it; what is there already stays."""

import shutil
from pathlib import Path

here = Path(__file__).parent
runs = here.parents[2] / "cache" / "runs"
for file in sorted(here.glob("*.safetensors")):
    name, imitation, key = file.stem.partition("-imitation-")
    if name.startswith("sweep-"):
        place = runs / "sweeps" / name.removeprefix("sweep-")
    else:
        place = runs / name / (f"imitation-{key}" if imitation else "checkpoint")
    place = place.with_suffix(".safetensors")
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    print(place)
