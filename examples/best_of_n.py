"""Images of one prompt, the best first: `python examples/best_of_n.py "a lighthouse at dusk" a.png b.png`"""

import sys

from m3agiqa import Assessor

prompt, *images = sys.argv[1:]
ranking = Assessor.from_pretrained("nano").rank(images, prompt)
for place in ranking.places():
    print(place.place, place.image.name, place.figure.mos, place.to_next or "", sep="\t")
