#!/bin/sh
for m in /app/lib/*; do . "$m/init.sh"; echo "$GREETING from $(basename "$m") $version"; done
