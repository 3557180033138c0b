"""Small copies of published datasets, in their files, names and encodings. The better an image, the redder it is."""

import io
import json
import struct
import tarfile
import zipfile
from datetime import UTC, datetime

from data_parts import BLUE, RED, picture
from datasets import Dataset, Features, Image, Value
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from lit_align.data.pick_a_pic import row

COLORS = {"red": (255, 0, 0), "purple": (128, 0, 128), "blue": (0, 0, 255)}
JPEG, WEBP = ({name: picture(color, kind=kind) for name, color in COLORS.items()} for kind in ("JPEG", "WEBP"))


def redness(image):
    """1 for a red image, 0 for a blue one."""
    return round((image[0].mean() / (image[0].mean() + image[2].mean())).item(), 1)


def tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def zipped(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def hpd_v1(folder, n=4):
    """Groups of three images, of which one was chosen; a record without a choice."""
    for split in ("train", "test"):
        items = [{"human_preference": i % 3, "prompt": f"a cat {i}", "id": i, "file_path": [f"{i}_{k}.jpg" for k in range(3)], "user_hash": "ab12", "contain_name": False} for i in range(n)]
        items.append(items[0] | {"human_preference": None})
        (folder / f"preference_{split}.json").write_text(json.dumps(items))
    images = {f"preference_images/{i}_{k}.jpg": JPEG["red" if k == i % 3 else "blue"] for i in range(n) for k in range(3)}
    zipped(folder / "preference_images.zip", images)
    return folder


def hpd_v2(folder, n=4):
    """Pairs for training, and rankings of four images with a tie for testing."""
    train = [{"prompt": f"a dog {i}", "file_path": [f"{i}a.jpg", f"{i}b.jpg"], "human_preference": [1, 0] if i % 2 else [0, 1]} for i in range(n)]
    (folder / "train.json").write_text(json.dumps(train))
    tar(folder / "train.tar.gz", {f"train/{i}{k}.jpg": JPEG["red" if (k == "a") == bool(i % 2) else "blue"] for i in range(n) for k in "ab"}, "w:gz")
    raw = [{"rank": [1, 2, 3, 4], "user_hash": "cd"}]
    test = [{"prompt": f"a test {i}", "image_path": [f"{i}_{k}.jpg" for k in range(4)], "rank": [2, 1, 2, 3], "raw_annotations": raw} for i in range(n)]
    (folder / "test.json").write_text(json.dumps(test))
    tar(folder / "test.tar.gz", {f"test/{i}_{k}.jpg": JPEG[("purple", "red", "purple", "blue")[k]] for i in range(n) for k in range(4)}, "w:gz")
    return folder


def hpd_v3(folder, n=4):
    """path1 is better; a confidence that is high, null or low; the images in a split archive."""
    kinds = [
        {"choice_dist": [9, 1], "confidence": 0.99, "model1": "flux", "model2": "sd3"},
        {"choice_dist": None, "confidence": None, "model1": "midjourney", "model2": "midjourney"},
        {"choice_dist": [6, 4], "confidence": 0.7, "model1": "kolors", "model2": "sdxl"},
    ]
    items = [{"prompt": f"a boat {i}", "path1": f"images/{i}/w.jpg", "path2": f"images/{i}/l.jpg"} | kinds[i % 3] for i in range(n)]
    (folder / "train.json").write_text(json.dumps(items))
    (folder / "test.json").write_text(json.dumps([{k: item[k] for k in ("prompt", "path1", "path2", "model1", "model2")} for item in items]))
    whole = folder / "whole"
    tar(whole, {f"images/{i}/{k}.jpg": JPEG[c] for i in range(n) for k, c in (("w", "red"), ("l", "blue"))}, "w:gz")
    data, third = whole.read_bytes(), whole.stat().st_size // 3
    whole.unlink()
    for k, part in enumerate((data[:third], data[third : 2 * third], data[2 * third :])):
        (folder / f"images.tar.gz.{k:03d}").write_bytes(part)
    return folder


def image_reward_db(folder, prompts=2, parts=4):
    """Four images of each prompt with ranks 1, 2, 2, 3; two prompts share an archive."""
    for split, n in (("train", parts), ("validation", 2), ("test", 2)):
        for part in range(1, n + 1):
            items, images = [], {}
            for p in range(prompts):
                for k, rank in enumerate((1, 2, 2, 3)):
                    name = f"{part}{p}{k}-uuid.webp"
                    images[name] = WEBP[("red", "purple", "blue")[rank - 1]]
                    ratings = {"rank": rank, "overall_rating": 7 - rank, "image_text_alignment_rating": 6 - k, "fidelity_rating": 5}
                    items.append({"image_path": f"images/{split}/{split}_{part}/{name}", "prompt_id": f"{part:06d}-{p:04d}", "prompt": f"a house {part} {p}", "classification": "Animals", "image_amount_in_total": 4} | ratings)
            zipped(folder / f"images/{split}/{split}_{part}.zip", images | {f"{split}_{part}.json": json.dumps(items).encode()})
    return folder


def pick_a_pic_webdataset(folder, n=3, shards=2):
    """The repack of the hub: keys repeat in every shard, labels are text."""
    for s in range(shards):
        files = {}
        for i in range(n):
            label = ("1", "0.0", "0.5")[i % 3]
            colors = ("blue", "red") if label == "0.0" else ("red", "blue")
            fields = {"original_prompt.txt": f"a tree {s} {i}".encode(), "jpg_0.jpg": JPEG[colors[0]], "jpg_1.jpg": JPEG[colors[1]]}
            fields |= {"label_0.txt": label.encode(), "label_1.txt": str(1 - float(label)).encode()}
            files |= {f"{i}.{name}": data for name, data in fields.items()}
        tar(folder / f"{s:05d}.tar", files)
    return folder


def pick_a_pic_columns(folder, n=4):
    """Another repack: one field for each column, all values as text, keys of random letters."""
    files = {}
    for i in range(n):
        fields = {"caption": f"a lake {i}", "label_0": "0.0" if i % 2 else "1.0", "label_1": "1.0" if i % 2 else "0.0", "has_label": str(i < n - 1), "are_different": "True"}
        fields |= {"image_0_uid": f"u{i}", "image_1_uid": f"v{i}", "ranking_id": str(i)}
        images = {"jpg_0": JPEG["blue" if i % 2 else "red"], "jpg_1": JPEG["red" if i % 2 else "blue"]}
        files |= {f"{i:02d}c0ffee.{name}": value.encode() for name, value in fields.items()} | {f"{i:02d}c0ffee.{name}": data for name, data in images.items()}
    tar(folder / "train-00000.tar", files)
    return folder


def pick_a_pic_rows(n=4):
    return [row(f"a hill {i}", RED, BLUE, 1.0, "dreamlike-art/x" if i % 2 else "sdxl", i, 0) | {"image_0_uid": f"u{i}", "image_1_uid": f"v{i}"} for i in range(n)]


def pick_a_pic_no_images(folder, n=4):
    """The release without images, and a folder of images named by uid."""
    rows = [{k: v for k, v in one.items() if not k.startswith("jpg_")} for one in pick_a_pic_rows(n)]
    Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    (folder / "uids").mkdir()
    for i in range(n):
        (folder / f"uids/u{i}.jpg").write_bytes(JPEG["red"])
        (folder / f"uids/v{i}.png").write_bytes(BLUE)
    return folder


def open_image_preferences(folder, n=4):
    features = Features({"prompt": Value("string"), "chosen": Image(), "rejected": Image(), "category": Value("string")})
    rows = [{"prompt": f"a fox {i}", "chosen": {"bytes": JPEG["red"], "path": "c.jpg"}, "rejected": {"bytes": JPEG["blue"], "path": "r.jpg"}, "category": "Anime"} for i in range(n)]
    Dataset.from_list(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def mhp(folder, n=4):
    rows = []
    for i in range(n):
        for name, color in (("a", "red"), ("b", "blue")):
            (folder / f"{i}{name}.jpg").write_bytes(JPEG[color])
        rows.append({"prompt": f"a star {i}", "image_0": f"{i}a.jpg", "image_1": f"{i}b.jpg", "overall": 1, "aesthetics": 0, "alignment": 0.5, "detail": None})
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / "train.jsonl"


def vision_prefer(folder, n=4):
    for name, color in (("a", "red"), ("b", "purple"), ("c", "blue"), ("d", "blue")):
        (folder / f"{name}.jpg").write_bytes(JPEG[color])
    scores = {"prompt_following": [5, 4, 3, 3], "aesthetic": [5, 4, 3, 2], "fidelity": [5, 3, 3, 4], "harmlessness": [5, 5, 5, 5]}
    rows = [{"prompt": f"a moon {i}", "images": ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], "rationale": "since ..."} | scores for i in range(n)]
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / "train.jsonl"


def image_social(folder, n=4):
    (folder / "w.jpg").write_bytes(JPEG["red"])
    (folder / "l.jpg").write_bytes(JPEG["blue"])
    Dataset.from_list([{"prompt": f"a bird {i}", "pos_path": "w.jpg", "neg_path": "l.jpg"} for i in range(n)]).to_parquet(folder / "train.parquet")
    return folder / "train.parquet"


def diffusion_db(folder, n=4):
    """One part and the table of NSFW scores: the third image was blurred by the publisher, the fourth prompt is not safe."""
    names = [f"{i}-uuid.png" for i in range(n)]
    items = {name: {"p": f"a road {i}", "se": 7 + i, "c": 7.0, "st": 50, "sa": "k_lms"} for i, name in enumerate(names)}
    zipped(folder / "images/part-000001.zip", dict.fromkeys(names, RED) | {"part-000001.json": json.dumps(items).encode()})
    nsfw = [(0.1, 0.0), (0.4, 0.2), (2.0, 0.1), (0.0, 0.9)]
    stamp = datetime(2022, 8, 8, tzinfo=UTC)
    rows = [{"image_name": name, "prompt": f"a road {i}", "part_id": 1, "seed": 7, "step": 50, "cfg": 7.0, "sampler": 8, "width": 512, "height": 512, "user_name": "h", "timestamp": stamp, "image_nsfw": nsfw[i % 4][0], "prompt_nsfw": nsfw[i % 4][1]} for i, name in enumerate(names)]
    Dataset.from_list(rows).to_parquet(folder / "metadata.parquet")
    return folder


def diffusion_db_parquet(folder, n=4):
    nsfw = [(0.1, 0.0), (0.4, 0.2), (2.0, 0.1), (None, 0.0)]
    features = Features({"image": Image(), "prompt": Value("string"), "seed": Value("uint32"), "image_nsfw": Value("float32"), "prompt_nsfw": Value("float32")})
    rows = [{"image": {"bytes": RED, "path": "x.png"}, "prompt": f"a road {i}", "seed": i, "image_nsfw": nsfw[i % 4][0], "prompt_nsfw": nsfw[i % 4][1]} for i in range(n)]
    Dataset.from_list(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def example_class():
    """tf.train.Example, built by Google's protobuf from its published definition."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    label, kinds = descriptor_pb2.FieldDescriptorProto, {"BytesList": 12, "FloatList": 2, "Int64List": 3}
    for name, kind in kinds.items():
        message = file.message_type.add(name=name)
        message.field.add(name="value", number=1, label=label.LABEL_REPEATED, type=kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, of) in enumerate(zip(("bytes_list", "float_list", "int64_list"), kinds), 1):
        feature.field.add(name=name, number=number, label=label.LABEL_OPTIONAL, type=label.TYPE_MESSAGE, type_name=f".t.{of}", oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=label.LABEL_OPTIONAL, type=label.TYPE_STRING)
    entry.field.add(name="value", number=2, label=label.LABEL_OPTIONAL, type=label.TYPE_MESSAGE, type_name=".t.Feature")
    features.field.add(name="feature", number=1, label=label.LABEL_REPEATED, type=label.TYPE_MESSAGE, type_name=".t.Features.FeatureEntry")
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, label=label.LABEL_OPTIONAL, type=label.TYPE_MESSAGE, type_name=".t.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def serialized(features):
    example = example_class()()
    for name, values in features.items():
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(values[0])]
        getattr(example.features.feature[name], kind).value.extend(values)
    return example.SerializeToString()


def crc32c_by_table(data):
    """An independent CRC-32C, with a table of bytes, and the format's mask."""
    table = []
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ (0x82F63B78 if n % 2 else 0)
        table.append(n)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) % 256] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) % 2**32


def tfrecord(path, examples):
    with open(path, "wb") as file:
        for features in examples:
            body = serialized(features)
            head = struct.pack("<Q", len(body))
            file.write(head + struct.pack("<I", crc32c_by_table(head)) + body + struct.pack("<I", crc32c_by_table(body)))


def grey(level, size=(16, 16)):
    from PIL import Image as Picture

    buffer = io.BytesIO()
    Picture.new("L", size, level).save(buffer, "PNG")
    return buffer.getvalue()


def rich_hf_rows(n=4):
    return [
        {"filename": f"train/{'uv'[i % 2]}{i}.png", "aesthetics_score": 0.25 + i / 8, "artifact_score": 0.5, "misalignment_score": 0.75, "overall_score": 1.0, "artifact_map": grey(0), "misalignment_map": grey(51), "prompt_misalignment_label": "1 0 1"}
        for i in range(n)
    ]


def rich_hf(folder, n=4):
    """The published records, one of an image that Pick-a-Pic lacks, and Pick-a-Pic."""
    rows = [*rich_hf_rows(n), rich_hf_rows(1)[0] | {"filename": "train/gone.png"}]
    encode = lambda value: [value.encode() if isinstance(value, str) else value]
    for split in ("train", "dev", "test"):
        tfrecord(folder / f"{split}.tfrecord", [{k: encode(v) for k, v in row.items()} for row in rows])
    (folder / "pick_a_pic").mkdir()
    Dataset.from_list(pick_a_pic_rows(n)).to_parquet(folder / "pick_a_pic/train-00000-of-00001.parquet")
    return folder


def rich_hf_parquet(folder, n=4, with_images=True):
    """The copies on the hub: scores in float64, maps and images as bytes, words as text; without images words as a list."""
    rows = rich_hf_rows(n)
    for one in rows:
        if with_images:
            one |= {"image": JPEG["red"], "caption": "a red hill"}
        else:
            one["prompt_misalignment_label"] = [int(x) for x in one["prompt_misalignment_label"].split()]
    Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder
