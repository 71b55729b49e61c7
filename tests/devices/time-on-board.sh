#!/bin/sh
# sh time-on-board.sh USER@BOARD MODEL INPUTS: copy both to the board, run time_model.py there, print what it prints
set -e
folder=$(ssh "$1" mktemp -d)
trap 'ssh "$1" rm -r "$folder"' EXIT
scp -q "$2"* "$3" "$1:$folder/"
ssh "$1" python3 time_model.py "$folder/$(basename "$2")" "$folder/$(basename "$3")"
