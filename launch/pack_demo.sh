#!/usr/bin/env bash
# Packs the demo data from its source folder: emoji/{captions.tsv,images.tar}, text.tar.gz, series/*.ts
#   bash launch/pack_demo.sh SOURCE [TARGET]     (about 70 s; TARGET defaults to bigssl/demo)
# Speech is made of the captions by espeak-ng (apt-get install espeak-ng).
# The same sources, zlib, espeak-ng, libopus and libwebp give the same bytes; `bigssl shards verify` checks each part at the end.
set -euo pipefail
source=${1:?usage: pack_demo.sh SOURCE [TARGET]}
target=${2:-$(cd "$(dirname "$0")/.." && pwd)/bigssl/demo}
bigssl=${BIGSSL:-bigssl}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$target/series/basic_motions" "$target/series/italy_power"
tar -xf "$source/emoji/images.tar" -C "$stage"
tar -xzf "$source/text.tar.gz" -C "$stage"

# both designs of an emoji, its relatives and its look-alikes fall on the same side of the split
"${PYTHON:-python}" "$(dirname "$0")/group_demo.py" "$source/emoji/captions.tsv" "$stage/images" > "$stage/grouped.tsv"
$bigssl shards pack "$stage/grouped.tsv" "$target/emoji" --overwrite --compress --shard-size 440 \
  --root "$stage" --image 'google=images/{code}.google.jpg' --image 'twitter=images/{code}.twitter.jpg' \
  --key '{code}-{variant}' --group '{group}' --split val=0.2 --variant design \
  --text '{caption}: {tags}' --meta code,category,subcategory,caption_zh
# some of the captions, spoken; on the same side of the split as the pictures
"${PYTHON:-python}" "$(dirname "$0")/speak_demo.py" "$source/emoji/captions.tsv" "$stage/images" "$target/emoji" \
  "$stage/speech"
for part in train val words; do
  $bigssl shards pack "$stage/speech/$part" "$target/speech/$part" --overwrite --compress --name "speech-$part" \
    --shard-size 240 --labels none
done
$bigssl shards pack "$stage/text" "$target/text" --overwrite --compress --shard-size 18 --split val=0.1 --seed 5 \
  --pattern '(?P<key>(?P<year>\d{4})_(?P<name>\w+?)(?:_[dr])?)\.(?P<party>\w+)'
for part in TRAIN TEST; do
  $bigssl shards pack "$source/series/BasicMotions_$part.ts" "$target/series/basic_motions/${part,,}" --overwrite \
    --compress --keep-order --name "basic-motions-${part,,}"
  $bigssl shards pack "$source/series/ItalyPowerDemand_$part.ts" "$target/series/italy_power/${part,,}" --overwrite \
    --compress --keep-order --name "italy-power-${part,,}" --shard-size 600
done
$bigssl tokenizer train "$target/emoji/train" "$target/text/train" "$target/tokenizer.json" --vocab-size 8192
$bigssl tokenizer train "$target/text/train" "$target/tokenizer-prose.json" --vocab-size 1024
$bigssl tokenizer train "$target/text/train" "$target/tokenizer-characters.json" --kind characters

for part in emoji/{train,val} speech/{train,val,words} text/{train,val} series/{basic_motions,italy_power}/{train,test}; do
  $bigssl shards verify "$target/$part"
done
