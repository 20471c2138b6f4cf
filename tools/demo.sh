#!/usr/bin/env bash
# The main job on a real clip: one click on the rabbit of Big Buck Bunny, its mask in every frame.
#
#   bash tools/demo.sh        leaves demo/overlay.mp4, demo/masks/*.png, demo/contact_sheet.jpg
#
# The first run makes .venv and fetches the weights; later runs use both again and track anew.
# Clip: (c) 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

START=36        # the rabbit is half out of its burrow; both ears are up
END=100         # it has stretched
POINT="460,530" # on its belly in frame START, in pixels of the clip (1280 x 720)

ensure_environment demo
echo "weights: $("$BIN/persam-video" weights get vit_t)"
clip=$("$BIN/python" tools/demo_clip.py)
echo "clip: $clip"
echo "tracking $((END - START)) of the clip's 132 frames ($START to $((END - 1))), so that two" \
    "processor cores need less than 3 minutes; one click at $POINT"
"$BIN/persam-video" track "$clip" --start $START --end $END --points "$POINT" \
    --output demo --save masks,overlay,sheet --overwrite
