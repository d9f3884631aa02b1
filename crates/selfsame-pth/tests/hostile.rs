//! Files that were made to harm: each is answered by an error that says why, soon, without a panic.

#![expect(clippy::unwrap_used, reason = "a test may end with a panic")]

mod common;

use std::io::Cursor;
use std::time::{Duration, Instant};

use common::{Pickle, archive, open, read_all, with_pickle};
use selfsame_pth::{Limits, PthError, PthFile};

/// The error of a file; it must come soon.
fn refused(bytes: &[u8]) -> PthError {
    let began = Instant::now();
    let error = read_all(bytes).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(10), "{error}");
    error
}

/// The text of the error of a file with this pickle.
fn says(pickle: &[u8]) -> String {
    refused(&with_pickle(pickle)).to_string()
}

fn assert_says(what: &str, pickle: &[u8], part: &str) {
    let text = says(pickle);
    assert!(text.contains(part), "{what}: {text}");
}

#[test]
fn a_file_made_by_hand_opens_if_it_is_honest() {
    let pickle = Pickle::new().named("w").tensor(0, &[2, 2], &[2, 1]).end();
    let bytes = with_pickle(&pickle);
    let tensors = open(&bytes).unwrap().read(|_| true).unwrap();
    assert_eq!(tensors["w"].shape, [2, 2]);
    assert_eq!(tensors["w"].bytes[12..], 4f32.to_le_bytes());
}

#[test]
fn payloads_are_named_and_not_run() {
    let marker = std::env::temp_dir().join(format!("selfsame-pth-{}", std::process::id()));
    let command = format!("touch {}", marker.display());
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor"),
        ("numpy", "load"),
        ("argparse", "FileType"),
    ] {
        let by_line = Pickle::new().global(module, name).op("(").text(&command);
        let by_stack = Pickle::new()
            .text(module)
            .text(name)
            .op([0x93])
            .op("(")
            .text(&command);
        for pickle in [by_line, by_stack] {
            let error = refused(&with_pickle(&pickle.op("tR.").0));
            assert!(matches!(error, PthError::Forbidden { .. }), "{error}");
            assert!(
                error.to_string().contains(&format!("{module}.{name}")),
                "{error}"
            );
        }
    }
    assert!(!marker.exists(), "the payload was run");
}

#[test]
fn opcodes_that_build_objects_otherwise_are_refused() {
    // INST, OBJ, text INT, text PERSID, DUP, REDUCE of a text.
    for (opcodes, part) in [
        ("(ios\nsystem\n", "(byte 3): opcode 0x69 is not"),
        ("(o", "(byte 3): opcode 0x6f is not"),
        ("I01\n.", "(byte 2): opcode 0x49 is not"),
        ("P0\n", "(byte 2): opcode 0x50 is not"),
        ("2", "(byte 2): opcode 0x32 is not"),
        (
            "X\x01\0\0\0aX\x01\0\0\0bR",
            "(byte 14): it calls what is no class",
        ),
    ] {
        assert_says(opcodes, &Pickle::new().op(opcodes).0, part);
    }
    // EXT1, EXT2, EXT4, LONG4, NEWOBJ_EX, BYTEARRAY8, NEXT_BUFFER, READONLY_BUFFER, and two that no protocol has.
    for opcode in [0x82u8, 0x83, 0x84, 0x8b, 0x92, 0x96, 0x97, 0x98, 0xff, 0x00] {
        let text = says(&Pickle::new().op([opcode, 0, 0, 0, 0]).0);
        let part = format!("(byte 2): opcode 0x{opcode:02x} is not");
        assert!(text.contains(&part), "{text}");
    }
    let protocol = [0x80, 9, b'.'];
    assert_says("protocol", &protocol, "protocol 9");
    let attributes = Pickle::new().global("torch", "FloatStorage").op("}b.").0;
    assert_says("BUILD on a class", &attributes, "attributes of a class");
}

#[test]
fn deep_nesting_ends_at_a_limit() {
    let mut pickle = Pickle::new();
    for _ in 0..100_000 {
        pickle = pickle.named("a");
    }
    pickle = pickle.tensor(0, &[1], &[1]);
    pickle = pickle.op("s".repeat(100_000)).op(".");
    assert_says("dictionaries", &pickle.0, "nested dictionaries");

    let lists = Pickle::new()
        .op("]".repeat(200_000))
        .op("a".repeat(199_999))
        .op(".");
    let error = refused(&with_pickle(&lists.0));
    assert!(error.to_string().contains("nested dictionaries"), "{error}");

    let own = Pickle::new().op("}q\x00").text("self").op("h\x00").end();
    assert_says("a dictionary in itself", &own, "nested dictionaries");
    assert_says("marks", &Pickle::new().op("(".repeat(600_000)).0, "objects");
}

#[test]
fn bombs_of_shared_objects_end_at_a_limit() {
    // a = [tensor]; then 60 times: a = [a, a].
    let mut doubling = Pickle::new().op("]").tensor(0, &[1], &[1]).op("aq\x01");
    for _ in 0..60 {
        doubling = doubling.op("0](h\x01h\x01eq\x01");
    }
    assert_says("doubling", &doubling.op(".").0, "limit");

    let puts = (0..600_000u32).fold(Pickle::new().op("N"), |pickle, key| {
        pickle.op("r").op(key.to_le_bytes())
    });
    assert_says("memo", &puts.op(".").0, "limit");
    assert_says(
        "gets",
        &Pickle::new().op("Nq\x00").op("h\x00".repeat(600_000)).0,
        "limit",
    );

    // One list of 100,000 items as the argument of 1,000 calls.
    let items = Pickle::new().op("](").op("N".repeat(100_000)).op("eq\x01");
    let mut calls = items;
    for _ in 0..1000 {
        calls = calls.global("torch", "Size").op("h\x01").op([0x85]).op("R");
    }
    assert_says("calls", &calls.op(".").0, "limit");

    // One dictionary of 50,000 keys that is walked 50,000 times.
    let mut inner = Pickle::new().op("}(");
    for key in 0..50_000 {
        inner = inner.int(key).op("}");
    }
    let mut walked = inner.op("uq\x01}(");
    for key in 0..50_000 {
        walked = walked.int(key).op("h\x01");
    }
    assert_says("walks", &walked.op("u.").0, "limit");
}

#[test]
fn shapes_that_lie_are_refused() {
    for (what, offset, shape, strides) in [
        ("huge", 0, &[1i64 << 40][..], &[1i64][..]),
        ("overflow", 0, &[i64::MAX, i64::MAX], &[1, 1]),
        ("stride", 0, &[2], &[1 << 40]),
        ("overflowing stride", 0, &[3], &[i64::MAX]),
        ("offset", 4, &[1], &[1]),
        ("huge offset", i64::MAX, &[1], &[1]),
        ("one too many", 0, &[5], &[1]),
    ] {
        let pickle = Pickle::new()
            .named("w")
            .tensor(offset, shape, strides)
            .end();
        assert_says(what, &pickle, "does not lie in a storage of 16 bytes");
    }
    for (what, shape, strides, part) in [
        (
            "negative size",
            &[-1i64][..],
            &[1i64][..],
            "a size or stride of -1",
        ),
        ("negative stride", &[1], &[-1], "a size or stride of -1"),
        ("ranks differ", &[1, 1], &[1], "2 sizes and 1 strides"),
        ("rank 40", &[1; 40], &[1; 40], "40 sizes"),
    ] {
        let pickle = Pickle::new().named("w").tensor(0, shape, strides).end();
        assert_says(what, &pickle, part);
    }
    // A view that repeats one element, far more of it than the file is long.
    let expanded = Pickle::new().named("w").tensor(0, &[1 << 30], &[0]).end();
    assert_says("expanded", &expanded, "tensors share or repeat");
}

#[test]
fn what_is_repeated_has_a_limit_of_its_own() {
    let pickle = Pickle::new().named("w").tensor(0, &[1000], &[0]).end();
    let bytes = with_pickle(&pickle);
    let len = bytes.len() as u64;
    assert!((250..4000).contains(&len), "{len}");
    for (repeated, found) in [(4000 - len, true), (3999 - len, false)] {
        let limits = Limits {
            max_repeated_bytes: repeated,
            ..Limits::default()
        };
        let mut file = PthFile::new(Cursor::new(&bytes[..]), limits).unwrap();
        assert_eq!(file.read(|_| true).is_ok(), found, "{repeated}");
    }
}

#[test]
fn numbers_and_texts_that_lie_about_their_length_are_refused() {
    for (what, opcodes) in [
        ("LONG1 of 255 bytes", &[0x8a, 0xff, 1][..]),
        ("BINUNICODE of 4 GB", &[b'X', 0xff, 0xff, 0xff, 0xff, b'a']),
        (
            "BINUNICODE8",
            &[0x8d, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ),
        (
            "BINBYTES8",
            &[0x8e, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        ),
        ("SHORT_BINUNICODE", &[0x8c, 200, b'a']),
        ("BININT", b"J\x01"),
        ("BINFLOAT", b"G\x01\x02"),
        ("no end of line", b"ctorch"),
        ("nothing", b""),
    ] {
        let part = match what {
            "no end of line" => "(byte 2): a line has no end",
            _ => "(byte 2): it ends in mid-sentence",
        };
        assert_says(what, &Pickle::new().op(opcodes).0, part);
    }
    assert_says(
        "not UTF-8",
        &Pickle::new().op([0x8c, 2, 0xff, 0xfe]).0,
        "UTF-8",
    );
    let wide = Pickle::new().op([0x8a, 9]).op([1; 9]).op(".").0;
    assert_says(
        "LONG1 of 9 bytes is kept without its value",
        &wide,
        "holds no tensor",
    );
}

#[test]
fn a_stack_that_is_not_there_is_refused() {
    for (opcodes, part) in [
        (
            &[&b"."[..], b"0", b"a", b"s", b"R", b"b", b"Q"][..],
            "it takes from an empty stack",
        ),
        (
            &[b"\x93", b"\x85", b"\x86", b"\x87", b"\x81"],
            "it takes from an empty stack",
        ),
        (
            &[b"1", b"t", b"e", b"u", b"\x90", b"\x91"],
            "there is no open mark",
        ),
        (&[b"q\0", b"r\0\0\0\0", b"\x94"], "the stack is empty"),
        (&[b"h\0", b"j\0\0\0\0"], "it recalls 0, which it never kept"),
    ] {
        for opcodes in opcodes {
            let text = says(&Pickle::new().op(opcodes).0);
            let part = format!("(byte 2): {part}");
            assert!(text.contains(&part), "{opcodes:?}: {text}");
        }
    }
    // Below an open mark nothing may be taken.
    assert_says("below a mark", &Pickle::new().op("N(0").0, "empty stack");
    assert_says("odd items", &Pickle::new().op("}(Nu.").0, "no value");
    assert_says(
        "items of a text",
        &Pickle::new().text("a").op("NNs.").0,
        "no dictionary",
    );
}

#[test]
fn storages_that_are_not_as_described_are_refused() {
    let described = |class: (&str, &str), key: &str, elements: i64| {
        let pickle = Pickle::new()
            .named("w")
            .global("torch._utils", "_rebuild_tensor_v2")
            .op("(")
            .storage(class, key, elements)
            .int(0)
            .tuple(&[1])
            .tuple(&[1])
            .op([0x89])
            .op("}tR");
        says(&pickle.end())
    };
    let float = ("torch", "FloatStorage");
    assert!(described(float, "7", 4).contains("no entry data/7"));
    assert!(described(float, "0", 5).contains("16 bytes where the pickle says 20"));
    assert!(described(float, "0", -4).contains("not a storage"));
    assert!(described(float, "../../etc/passwd", 4).contains("not a storage"));
    assert!(described(float, "", 4).contains("not a storage"));
    assert!(described(float, &"1".repeat(1000), 4).contains("not a storage"));
    assert!(described(("torch", "QInt8Storage"), "0", 4).contains("torch.QInt8Storage"));
    assert!(described(("torch", "ComplexFloatStorage"), "0", 4).contains("ComplexFloatStorage"));
    assert!(described(("torch.storage", "UntypedStorage"), "0", 4).contains("no element type"));
    assert_says("persistent id", &Pickle::new().op("NQ.").0, "not a storage");
}

#[test]
fn tensors_made_of_something_else_are_refused() {
    let call = |module, name| Pickle::new().global(module, name);
    for (module, name, part) in [
        ("torch._utils", "_rebuild_tensor_v2", "a tensor has too few"),
        ("torch._utils", "_rebuild_tensor_v3", "a tensor has too few"),
        (
            "torch._utils",
            "_rebuild_parameter",
            "a parameter is not made of",
        ),
        (
            "torch._tensor",
            "_rebuild_from_type_v2",
            "a tensor subclass has too few",
        ),
        ("torch", "FloatStorage", "a type is called"),
        ("torch", "float32", "a type is called"),
    ] {
        let opcodes = call(module, name).op(")");
        let part = format!("(byte {}): {part}", opcodes.0.len());
        assert_says(name, &opcodes.op("R.").0, &part);
    }
    let own = call("torch._tensor", "_rebuild_from_type_v2")
        .op("q\x00(h\x00N(h\x00N)tN")
        .op("tR.");
    assert_says("recursion", &own.0, "rebuilt by something else");
    let two = Pickle::new()
        .op("}(")
        .text("a.b")
        .tensor(0, &[1], &[1])
        .text("a")
        .named("b")
        .tensor(0, &[1], &[1])
        .op("su.");
    assert_says("two of one name", &two.0, "two tensors have this name");
    let one = |pickle: Pickle| pickle.tensor(0, &[1], &[1]);
    let number_and_text = one(one(Pickle::new().op("}(").int(1)).text("1")).op("u.");
    assert_says(
        "1 and \"1\"",
        &number_and_text.0,
        "its tensor 1: two tensors have this name",
    );
    // Keys that are objects have no name that tells them apart.
    let object = |pickle: Pickle| pickle.global("torch", "device").op(")R");
    let objects = one(object(one(object(Pickle::new().op("}("))))).op("u.");
    assert_says("objects", &objects.0, "<torch.device>: two tensors");
    let long = "k".repeat(5000);
    let long = Pickle::new().named(&long).tensor(0, &[1], &[1]).end();
    assert_says("a long key", &long, "k…: its name has more than 4096 bytes");
    // A key set again has its last value, as in Python.
    let again = Pickle::new().op("}(").text("a").op("N").text("a");
    assert_eq!(read_all(&with_pickle(&one(again).op("u.").0)).unwrap(), 1);
}

#[test]
fn one_long_key_of_many_pairs_is_answered_soon() {
    let key = "k".repeat(8_000_000);
    let pairs = Pickle::new().text(&key).op("q\x00").op("0}q\x01(");
    // In two parts: so many are not taken from the stack at once.
    let half = b"h\x00h\x01".repeat(200_000);
    let pairs = pairs.op(&half).op("u(").op(&half).op("u.");
    let text = says(&pairs.0);
    assert!(text.len() < 1000, "{} characters", text.len());
}

#[test]
fn shared_marks_of_many_tensor_subclasses_end_at_a_limit() {
    // One dictionary of 100,000 marks, looked at by each of 20,000 calls.
    let marks = Pickle::new().text("conj").op("q\x00").op("0}(");
    let marks = marks.op(b"h\x00\x89".repeat(100_000)).op("uq\x010");
    let args = marks
        .op("(")
        .global("torch._utils", "_rebuild_tensor_v2")
        .global("torch", "Tensor")
        .op("(")
        .storage(("torch", "FloatStorage"), "0", 4)
        .int(0)
        .tuple(&[4])
        .tuple(&[1])
        .op([0x89])
        .op("}h\x01tNtq\x020")
        .global("torch._tensor", "_rebuild_from_type_v2")
        .op("q\x030");
    let calls = args.op(b"h\x03h\x02R0".repeat(20_000)).op("N.");
    assert_says("marks", &calls.0, "over the limit for objects");
}

#[test]
fn paths_are_passed_over_whatever_python_wrote_them() {
    for module in ["pathlib", "pathlib._local"] {
        for class in [
            "PosixPath",
            "PurePosixPath",
            "WindowsPath",
            "PureWindowsPath",
        ] {
            let path = Pickle::new().op("}(").text("path").global(module, class);
            let path = path.op("(").text("out").op("tR").text("w");
            let pickle = path.tensor(0, &[4], &[1]).op("u.").0;
            assert_eq!(
                read_all(&with_pickle(&pickle)).unwrap(),
                1,
                "{module}.{class}"
            );
        }
    }
}

#[test]
fn names_in_errors_are_short_and_no_orders_to_a_terminal() {
    let long = "a".repeat(100_000);
    let text = says(&Pickle::new().global("\x1b[31mos\x07", &long).op(".").0);
    assert!(text.contains("\\u{1b}[31mos\\u{7}.aaa"), "{text}");
    assert!(text.len() < 1000, "{} characters", text.len());
    let text = says(&Pickle::new().named("\x1b[2J").tensor(9, &[4], &[1]).end());
    assert!(text.contains("its tensor \\u{1b}[2J: "), "{text}");
    let text = says(&Pickle::new().named("\x1b[2J").op("N").end());
    assert!(text.contains("\\u{1b}[2J (None)"), "{text}");
}

#[test]
fn marks_that_are_not_known_are_not_passed_over() {
    let marked = |marks: &[u8]| {
        let pickle = Pickle::new()
            .named("w")
            .global("torch._utils", "_rebuild_tensor_v2")
            .op("(")
            .storage(("torch", "FloatStorage"), "0", 4)
            .int(0)
            .tuple(&[4])
            .tuple(&[1])
            .op([0x89])
            .op("}")
            .op(marks)
            .op("tR");
        with_pickle(&pickle.end())
    };
    let set = |name: &str, value: u8| Pickle(b"}".to_vec()).text(name).op([value, b's']).0;
    assert_eq!(read_all(&marked(b"N")).unwrap(), 1);
    assert_eq!(read_all(&marked(&set("conj", 0x89))).unwrap(), 1);
    let file = marked(&set("neg", 0x88));
    let tensors = open(&file).unwrap().read(|_| true).unwrap();
    assert_eq!(tensors["w"].to_f32().unwrap(), [-1.0, -2.0, -3.0, -4.0]);
    for marks in [
        &set("conj", 0x88)[..],
        &set("other", 0x88),
        &set("neg", b'N'),
    ] {
        let text = refused(&marked(marks)).to_string();
        assert!(text.contains("its tensor w: a view"), "{text}");
    }
    let text = refused(&marked(b"\x88")).to_string();
    assert!(text.contains("metadata are no dictionary"), "{text}");
}

#[test]
fn what_to_do_fits_what_was_asked_for() {
    for (module, name, advice) in [
        ("torch", "bits8", "save that one as a plain tensor"),
        (
            "torch.nn.modules.linear",
            "Linear",
            "save only its state_dict",
        ),
        ("os", "system", "save only its state_dict"),
    ] {
        let text = says(&Pickle::new().global(module, name).op(".").0);
        assert!(text.contains(advice), "{text}");
    }
}

#[test]
fn archives_that_are_not_pytorchs_are_refused() {
    let pickle = Pickle::new().named("w").tensor(0, &[1], &[1]).end();
    let text = |bytes: &[u8]| refused(bytes).to_string();
    assert!(text(b"").contains("the file is empty"));
    assert!(text(b"<html>not found</html>").contains("<html>"));
    assert!(text(&[0x80, 2, 0x8a, 10, 0x6c, 0xfc]).contains("old form"));
    assert!(text(b"PK\x03\x04").contains("archive"));
    assert!(text(&archive(&[("archive/version", b"3")])).contains("no data.pkl"));
    assert!(text(&archive(&[("data.pkl", &pickle)])).contains("no data.pkl"));
    let two = archive(&[("a/data.pkl", &pickle), ("b/data.pkl", &pickle)]);
    assert!(text(&two).contains("more than one"));
    let big = archive(&[("a/data.pkl", &pickle), ("a/byteorder", b"big")]);
    assert!(text(&big).contains("big-endian"));
    let limits = Limits {
        max_pickle_bytes: 10,
        ..Limits::default()
    };
    let bytes = with_pickle(&pickle);
    let Err(error) = PthFile::new(Cursor::new(&bytes[..]), limits) else {
        panic!("a long pickle was read");
    };
    assert!(error.to_string().contains("at most 10"), "{error}");
}

#[test]
fn a_file_cut_or_changed_anywhere_gives_an_error_or_the_same_tensors() {
    let bytes = include_bytes!("golden/views.pth");
    let whole = open(bytes).unwrap().read(|_| true).unwrap();
    for len in 0..bytes.len() {
        assert!(read_all(&bytes[..len]).is_err(), "cut to {len}");
    }
    let mut changed = bytes.to_vec();
    for at in 0..bytes.len() {
        changed[at] ^= 0x10;
        if let Ok(mut file) = open(&changed)
            && let Ok(tensors) = file.read(|_| true)
        {
            assert_eq!(tensors, whole, "a flipped bit at {at} went unnoticed");
        }
        changed[at] = bytes[at];
    }
}

#[test]
fn compressed_and_encrypted_entries_are_named() {
    let pickle = Pickle::new().named("w").tensor(0, &[1], &[1]).end();
    let bytes = with_pickle(&pickle);
    // In both headers of an entry: flags at +6 and +8, method at +8 and +10.
    for (value, local, central, how) in [(8u8, 8, 10, "compressed"), (1, 6, 8, "encrypted")] {
        let mut bytes = bytes.clone();
        for at in 0..bytes.len() - 4 {
            match &bytes[at..at + 4] {
                b"PK\x03\x04" => bytes[at + local] = value,
                b"PK\x01\x02" => bytes[at + central] = value,
                _ => {}
            }
        }
        let error = refused(&bytes);
        assert!(matches!(error, PthError::NotStored { .. }), "{error}");
        assert!(error.to_string().contains(how), "{error}");
    }
}
