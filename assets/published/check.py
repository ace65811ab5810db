#!/usr/bin/env python3
"""Holds the tokenizer beside this script against two others.

    pip install tiktoken tokenizers
    python3 check.py dashscope-2.0.2-py3-none-any.whl [FILE…]

Against `tiktoken` with the ranks that the tokenizer was made from: sentences in many
languages, random characters of all planes, and the FILEs become the same ids. Against
`processor/tokenizer.json` of Qwen/Qwen-Image-Edit-2511, of which the SHA-256 is known: the
tokenizer as `tokenizers` saves it is that file.
"""

import hashlib
import json
import random
import sys
import unicodedata
import zipfile
from pathlib import Path

import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as Decoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import ByteLevel as Processor

from make import HERE, RANKS, alphabet, ranked

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WHOLE_FILE = "9c5ae00e602b8860cbd784ba82a8aa14e8feecec692e7076590d014d7b7fdafa"

SENTENCES = """\
Replace the sky with a sunset, don't touch the people; it's 7:45pm & they're 12 of 1024.
把背景换成雪山,人物保持不变,并在右上角写上“2025年新年快乐”。
將天空改成夜晚,加上霓虹燈招牌「營業中」。
背景を夕焼けに変えて、猫に赤い帽子をかぶせてください。カタカナもﾊﾝｶｸも。
하늘을 노을로 바꾸고 고양이에게 빨간 모자를 씌워 주세요.
Замените фон на зимний лес, а собаку сделайте рыжей.
Зробіть небо фіолетовим і додайте їжака.
Ersetze den Himmel über dem Haus durch Gewitterwolken, größer und schöner.
Remplacez l'arrière-plan par une forêt d'été, s'il vous plaît, à côté du cœur.
Cambia el cielo por uno más azul y añade un pingüino con corazón.
Substitua o fundo por uma praia ao pôr do sol e não mude a pessoa.
Sostituisci lo sfondo perché è più bello così: l'acqua dev'essere blu.
Zamień tło na górski pejzaż i dodaj żółtą łódź.
Změň oblohu na růžovou a přidej příšerně žluťoučkého koně.
Înlocuiește fundalul cu o pădure și adaugă o pasăre în ținut.
Arka planı karlı bir dağla değiştir, İstanbul'un ışıkları kalsın.
Thay nền bằng bãi biển lúc hoàng hôn, giữ nguyên người.
เปลี่ยนพื้นหลังเป็นภูเขาหิมะและเพิ่มแมวสีส้ม
पृष्ठभूमि को बर्फीले पहाड़ से बदलें और बिल्ली को लाल टोपी पहनाएँ।
পটভূমিকে সূর্যাস্তে পরিবর্তন করুন।
பின்னணியை மலையாக மாற்றவும்.
غيّر الخلفية إلى غروب الشمس وأضف قطة ترتدي قبعة حمراء.
پس‌زمینه را به کوه برفی تغییر دهید.
החלף את הרקע בשקיעה והוסף חתול עם כובע אדום.
Αντικατάστησε το φόντο με ένα χιονισμένο βουνό.
შეცვალე ფონი თოვლიანი მთით.
Փոխիր ֆոնը ձյունոտ սարով։
በስተጀርባውን ወደ በረዷማ ተራራ ቀይር።
ဆောင်းရာသီ တောင်ကို ထည့်ပါ။
🐱‍👤👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u212b \ufb01 \u00a0\u2003 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠮷野家 \ud7a3
<|im_start|>system\n not special here: <| im_end |> <tool_call_>
	def f(x):\r\n\t\treturn {"a": [1, 2.5e-3, 0xFF]}  # ~!@#$%^&*()\r\n\r\n   \n""".split("\n")


def theirs(wheel):
    tokens = ranked(zipfile.ZipFile(wheel).read(RANKS))
    ranks = {token: rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    # Not Python's normal form, which may be of another version of Unicode.
    normal = NFC().normalize_str
    return lambda text: encoding.encode(normal(text), disallowed_special=())


def ours():
    folder = HERE / "common" / "tokenizer"
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")[1:-1]
    merges = [tuple(line.split(" ")) for line in lines]
    vocab = [*alphabet().values(), *("".join(pair) for pair in merges)]
    numbered = {token: rank for rank, token in enumerate(vocab)}
    empty = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    tokenizer = Tokenizer(BPE(numbered, merges, **empty))
    plain = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer.normalizer = NFC()
    split = Split(Regex(PATTERN), "isolated", invert=False)
    tokenizer.pre_tokenizer = Sequence([split, ByteLevel(**plain)])
    tokenizer.decoder = Decoder(**plain)
    tokenizer.post_processor = Processor(**plain)
    return tokenizer


def add_tokens(tokenizer):
    config = json.loads((HERE / "common/tokenizer/tokenizer_config.json").read_text())
    for number, entry in config["added_tokens_decoder"].items():
        add = tokenizer.add_special_tokens if entry["special"] else tokenizer.add_tokens
        add([AddedToken(**entry)])
        assert tokenizer.token_to_id(entry["content"]) == int(number)


def saved(tokenizer):
    """`tokenizers` of 2026 does not keep what it is told of its decoder; that of the file did."""
    whole = json.loads(tokenizer.to_str())
    whole["decoder"] = {**whole["post_processor"]}
    return json.dumps(whole, indent=2, ensure_ascii=False).encode()


def random_texts(count):
    chance = random.Random(1)
    unassigned = ("Cn", "Cs", "Co")
    characters = map(chr, range(0x110000))
    assigned = [char for char in characters if unicodedata.category(char) not in unassigned]
    for _ in range(count):
        start = chance.randrange(len(assigned))
        near = assigned[start : start + 200] + list(" \n'.19aZ")
        yield "".join(chance.choice(near) for _ in range(chance.randrange(1, 60)))


def main():
    encode, tokenizer = theirs(sys.argv[1]), ours()
    texts = {
        "sentences": SENTENCES,
        "random characters": list(random_texts(20_000)),
        "files": [Path(file).read_text("utf-8", "replace") for file in sys.argv[2:]],
    }
    for name, corpus in texts.items():
        ids = [(text, encode(text), tokenizer.encode(text).ids) for text in corpus]
        wrong = [text for text, wanted, found in ids if wanted != found]
        tokens = sum(len(wanted) for _, wanted, _ in ids)
        print(f"{name}: {len(ids)} texts, {tokens} tokens, {len(wrong)} differ")
        for text in wrong[:5]:
            print(f"  {text[:80]!r}")
    add_tokens(tokenizer)
    same = hashlib.sha256(saved(tokenizer)).hexdigest() == WHOLE_FILE
    print("tokenizer.json:", "the published one" if same else "ANOTHER than the published one")


if __name__ == "__main__":
    main()
