//! What the commands answer.

use serde_json::json;

use super::*;

fn fa(words: &str) -> Reply {
    run(words.split_whitespace().map(str::to_owned).collect())
}

/// The answer, which must be JSON.
fn data(reply: &Reply) -> Value {
    serde_json::from_str(&reply.out).unwrap_or_else(|error| panic!("{error}: {}{}", reply.out, reply.err))
}

#[test]
fn info_knows_the_machine() {
    let reply = fa("info --json --threads 3");
    assert_eq!((reply.code, reply.err.as_str()), (0, ""));
    let found = data(&reply);
    assert_eq!(found["version"], info::version());
    assert_eq!(found["threads"], 3);
    // Whatever the machine, plain code runs on it and takes every type; and all shapes get a plan.
    let plain = found["kernels"].as_array().and_then(|kernels| kernels.last()).expect("kernels");
    assert_eq!((&plain["isa"], &plain["prefill"]), (&json!("scalar"), &json!("f32")));
    let all = [
        "f32", "f16", "bf16", "i8", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "f8_e4m3", "f8_e5m2",
        "u8", "q15",
    ];
    assert_eq!(plain["kv_types"], json!(all));
    assert_eq!(plain["allowed"], true);
    assert_eq!(found["plans"].as_array().map(Vec::len), Some(info::shapes().len()));
    let text = fa("info").out;
    for word in ["CPU ", "caches ", "scalar", "prefill", "decode", "workspace"] {
        assert!(text.contains(word), "no {word} in {text}");
    }
}

#[test]
fn check_explains_prompts_and_generation() {
    let reply = fa("check --heads 32/8 --len 512 --dim 128 --causal --threads 2 --json");
    let prompt = data(&reply);
    assert_eq!((reply.code, &prompt["accepted"]), (0, &json!(true)));
    assert_eq!(prompt["path"], "prefill");
    assert_eq!(prompt["kv_bytes"], 2 * 8 * 512 * 128 * 4);
    assert_eq!(prompt["threads"], 2);
    let token = data(&fa(
        "check --heads 32/8 --len-q 1 --len-kv=8192 --dim 128 --kv q8_0 --page 16 --threads 2 --json",
    ));
    assert_eq!(token["path"], "decode");
    assert_eq!(token["kv_bytes"], 2 * 8 * 8192 * 4 * 34);
    let bytes = |name: &str| token["workspace_bytes"][name].as_u64().expect("a number");
    assert!(bytes("one_thread") < bytes("all_threads"));
    // The text says the same, and begins with what fa_attention_check says.
    let text = fa("check --len 1/100 --threads 1").out;
    assert!(text.starts_with("accepted: ") && text.contains("decode (few query rows"), "{text}");
    assert!(text.contains("tiles      1 query heads x 1 rows x 100 keys"), "{text}");
}

#[test]
fn check_takes_every_option() {
    let words = "check --batch 2 --heads 4/2 --len 40/300 --dim 64/32 --dtype bf16 --kv i8 --out f16 --scales token \
                 --token-first --window 10/2 --softcap 30 --mask bool --alibi --sinks --lse --precise --blocks 32/64 \
                 --threads 4 --isa scalar --json";
    let reply = fa(words);
    assert_eq!(reply.code, 0, "{}{}", reply.out, reply.err);
    let found = data(&reply);
    assert_eq!((&found["isa"], &found["family"]), (&json!("scalar"), &json!("f32")));
    assert_eq!((&found["tiles"]["rows"], &found["tiles"]["keys"]), (&json!(32), &json!(64)));
    for known in check::KNOWN {
        assert!(
            words.contains(known.name)
                || known.name.starts_with("--len")
                || ["--causal", "--page", "--fast", "--ragged"].contains(&known.name)
        );
    }
    assert_eq!(fa("check --dtype i8 --fast").code, 0);
    let reply = fa("check --dtype i8 --fast --precise --json");
    assert_eq!((reply.code, &data(&reply)["status"]), (1, &json!("FA_ERR_RESERVED")));
    for scales in ["tensor", "head", "token", "channel"] {
        assert_eq!(fa(&format!("check --dtype i8 --scales {scales}")).code, 0);
        assert_eq!(fa(&format!("check --dtype f8_e4m3 --kv u8 --scales {scales}")).code, 0);
    }
}

#[test]
fn check_says_what_is_refused_and_why() {
    let reply = fa("check --heads 5/2 --json");
    let refused = data(&reply);
    assert_eq!((reply.code, &refused["status"]), (1, &json!("FA_ERR_SHAPE")));
    assert!(refused["why"].as_str().is_some_and(|why| why.contains("heads")), "{}", reply.out);
    for kv in ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"] {
        let reply = fa(&format!("check --dim 33 --kv {kv}"));
        assert_eq!(reply.code, 1);
        assert!(reply.out.starts_with("refused, FA_ERR_"), "{}", reply.out);
        assert_eq!(fa(&format!("check --dim 64 --len-q 1 --kv {kv}")).code, 0, "{kv}");
    }
    for (words, status) in [
        ("--softcap -1", "FA_ERR_SOFTCAP"),
        ("--window -2", "FA_ERR_WINDOW"),
        ("--dim 0", "FA_ERR_ZERO_EXTENT"),
        ("--len -1", "FA_ERR_SHAPE"),
        ("--heads 1 --len 4611686018427387904", "FA_ERR_OVERFLOW"),
        ("--batch -1", "FA_ERR_SHAPE"),
    ] {
        let reply = fa(&format!("check {words} --json"));
        assert_eq!((reply.code, &data(&reply)["status"]), (1, &json!(status)), "{words}");
    }
}

#[test]
fn what_is_not_understood_is_2_and_on_stderr() {
    for words in [
        "",
        "frobnicate",
        "info --frobnicate",
        "info --json=1",
        "check --len",
        "check --len many",
        "check --dtype f64",
        "check --isa mmx",
        "check --threads 0",
        "check stray",
        "check --page 1 --len-kv 99999999999",
        "bench frobnicate",
        "bench len=x",
        "bench len",
        "bench --len x",
        "bench --len",
        "bench --causal=1",
        "bench seconds=-1",
        // Its rival needs what this program goes without.
        "bench rival",
        "bench --isa mmx",
        "bench --threads 0",
        "bench --heads 0",
        "bench --dim 0",
        "bench --len_kv 0",
        "bench --heads 8 --group 3",
        "bench --dim 33 --dtype q8_0",
        "bench --stride 100",
        "bench --stride 4096 --dtype bf16",
        "bench floors --len 8",
        "tune floors",
        "tune --frobnicate",
        "check --page 0",
        "check --page -3",
        "check --ragged",
        "check --ragged 3,x",
        "check --ragged 3/-1",
        "check --ragged 3,,4",
        "check --ragged 3 --len 4",
        "check --ragged 3 --batch 2",
        "check --ragged 99999999999",
        "check --ragged 2147483647,1",
    ] {
        let reply = fa(words);
        assert_eq!((reply.code, reply.out.as_str()), (2, ""), "{words}");
        assert!(reply.err.contains("fa"), "{words}: {}", reply.err);
    }
    assert!(fa("check --dtype f64").err.contains("none of f32, f16, bf16, i8, q8_0, q4_0"));
}

#[test]
fn every_command_has_help() {
    for (words, word) in [
        ("help", "usage: fa info"),
        ("--help", "fa bench"),
        ("info --help", "--threads N"),
        ("check -h", "--heads N/KV"),
        ("bench --help", "floors|layers"),
        ("bench --help", "ms/token"),
        ("tune --help", "block_q"),
        ("check --help", "--ragged Q/KV,..."),
    ] {
        let reply = fa(words);
        assert_eq!((reply.code, reply.err.as_str()), (0, ""), "{words}");
        assert!(reply.out.contains(word), "{words}: {}", reply.out);
    }
    assert_eq!(fa("--version").out, format!("fa {}\n", env!("CARGO_PKG_VERSION")));
}

/// What was meant, where a word is like one that is known, and nothing where it is like none.
#[test]
fn words_that_are_nearly_known_are_asked_about() {
    for (words, meant) in [
        ("chek", "\"check\""),
        ("tuen", "\"tune\""),
        ("check --hedas 3", "\"--heads\""),
        ("info --thread 3", "\"--threads\""),
        ("check --dtype bf61", "\"bf16\""),
        ("check --isa scalr", "\"scalar\""),
        ("bench flors", "\"floors\""),
        ("bench --dtpye bf16", "\"dtype\""),
        ("bench --dtype q4-0", "\"q4_0\""),
        ("bench --isa sclaar", "\"scalar\""),
        ("tune --casual", "\"causal\""),
    ] {
        let reply = fa(words);
        let question = format!("did you mean {meant}?");
        assert!(reply.code == 2 && reply.err.contains(&question), "{words}: {}", reply.err);
    }
    for words in ["frobnicate", "check --frobnicate", "check --dtype frobnicate", "bench frobnicate"] {
        assert!(!fa(words).err.contains("did you mean"), "{words}");
    }
}

#[test]
fn nothing_is_given_twice() {
    for words in [
        "info --threads 1 --threads 2",
        "check --len 3 --len 4",
        "check --json --json",
        "check --causal --causal",
        "bench --len 3 len=4",
        "bench --len-q 3 --len_q 3",
        "bench --json --json=x",
        "bench floors floors",
        "tune --causal causal",
    ] {
        let reply = fa(words);
        assert!(reply.code == 2 && reply.err.contains("twice"), "{words}: {}", reply.err);
    }
}

#[test]
fn check_takes_sequences_of_different_lengths() {
    let words = "check --ragged 512/512,1/8192,3/300 --heads 8/2 --dim 64 --dtype bf16 --causal --threads 2";
    let found = data(&fa(&format!("{words} --json")));
    assert_eq!((&found["accepted"], &found["path"]), (&json!(true), &json!("prefill")));
    assert_eq!(found["kv_bytes"], 2 * 2 * (512 + 8192 + 300) * 128);
    // Those in pages have as many keys.
    let paged = data(&fa(&format!("{words} --page 16 --json")));
    assert_eq!((&paged["accepted"], &paged["kv_bytes"]), (&json!(true), &found["kv_bytes"]));
    let tokens = data(&fa("check --ragged 1/100,1/9000,1/0 --token-first --lse --json"));
    assert_eq!((&tokens["accepted"], &tokens["path"]), (&json!(true), &json!("decode")));
    // One for both; and what is given of a dense batch is not that of a ragged one.
    assert_eq!(fa("check --ragged 7,9").code, 0);
    assert!(fa("check --ragged 3 --len-q 4").err.contains("--len-q"));
    assert!(fa("check --ragged 2147483647,1").err.contains("more than 2147483647"));
}

/// Sizes that nobody has are accepted where they fit an address space, and refused with their true
/// numbers where they do not.
#[test]
fn words_about_huge_sizes_are_true() {
    let large = data(&fa("check --heads 8 --len-q 1 --len-kv 1099511627776 --dim 64 --threads 2 --json"));
    assert_eq!((&large["accepted"], &large["kv_bytes"]), (&json!(true), &json!(1u64 << 52)), "{large}");
    for (words, why) in [
        ("--heads 1 --len 4611686018427387904", "q has 1180591620717411303424 bytes"),
        ("--heads 8 --len 4611686018427387904", "q has 9444732965739290427392 bytes"),
        ("--dim 9223372036854775807 --heads 1 --len 1", "q has 36893488147419103228 bytes"),
        ("--len-q 1 --len-kv 9007199254740992", "k has 18446744073709551616 bytes"),
        (
            "--batch 9223372036854775807 --heads 9223372036854775807 --len 9223372036854775807",
            "q has more than 10^38 bytes",
        ),
        ("--heads 1 --len 27021597764222976", "with v, the tensors are larger together"),
    ] {
        let refused = data(&fa(&format!("check {words} --json")));
        assert_eq!(refused["status"], "FA_ERR_OVERFLOW", "{words}: {refused}");
        assert!(refused["why"].as_str().is_some_and(|text| text.starts_with(why)), "{words}: {refused}");
    }
    // Scales that are many lie beside the tensors, not on them; of no sequences nothing is large.
    for words in [
        "--dtype i8 --scales token --heads 8 --len 1000000 --dim 64",
        "--batch 0 --heads 9223372036854775807 --len 9223372036854775807 --dim 9223372036854775807",
    ] {
        let found = data(&fa(&format!("check {words} --threads 1 --json")));
        let why = found["why"].as_str().unwrap_or_default();
        assert!(!why.contains("shares memory") && !why.contains("10^38"), "{words}: {found}");
    }
    for (words, why) in [
        ("bench --len 99999999999", "would take 4.301 PB"),
        ("bench --heads 18446744073709551615 --len 8", "available"),
        ("check --len 99999999999999999999", "no number that fits"),
        ("bench --len 99999999999999999999", "no number that fits"),
        ("check --page 1 --len-kv 99999999999", "100000000000 pages"),
    ] {
        let reply = fa(words);
        assert!(reply.code == 2 && reply.err.contains(why), "{words}: {}", reply.err);
    }
    let many = data(&fa("check --heads 1048577 --len 1 --dim 8 --alibi --sinks --json"));
    assert_eq!(many["accepted"], true, "{many}");
}

/// A share that cannot be, and a probe that varied.
#[test]
fn disturbed_readings_are_marked() {
    assert!(measure::disturbed("%", 100.1, 0.0).is_some_and(|why| why.contains("more than 100 %")));
    assert!(measure::disturbed("%", 99.9, 0.05).is_some_and(|why| why.contains("±5 %")));
    for (unit, figure) in [("%", 100.0), ("x", 130.0), ("KiB", 256.0)] {
        assert_eq!(measure::disturbed(unit, figure, 0.01), None);
    }
}

/// The benchmark itself, on a shape that takes no time, into a file.
#[test]
fn bench_measures() {
    let file = std::env::temp_dir().join(format!("fa-bench-{}.json", std::process::id()));
    let measured = |json: &str| {
        fa(&format!("bench --heads 1 --len 8 dim=8 --seconds 0 --isa scalar --threads 1 --json={json}"))
    };
    let reply = measured(&file.to_string_lossy());
    assert_eq!(reply.code, 0, "{}", reply.err);
    let text = std::fs::read_to_string(&file).expect("the file was written");
    std::fs::remove_file(&file).expect("it is ours");
    let lines: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&lines[0]["shape"], &lines[0]["isa"]), (&json!("1 x 8 x 8 x 8"), &json!("scalar")));
    let number = |name: &str| lines[0][name].as_f64().unwrap_or_else(|| panic!("no {name}: {text}"));
    assert!(number("seconds") > 0.0);
    // Of 8 query rows; K and V are two times 8 rows of 8 numbers.
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-3 + 1e-2 * b;
    assert!(near(number("ms_per_token"), number("seconds") * 1e3 / 8.0), "{text}");
    assert!(near(number("gb_per_second"), 512.0 / number("seconds") / 1e9), "{text}");
    assert_eq!(measured("/nonexistent/x").code, 1);
}

/// Other tile sizes, each against the library's choice.
#[test]
fn tune_tries_other_tiles() {
    let file = std::env::temp_dir().join(format!("fa-tune-{}.json", std::process::id()));
    let name = file.to_string_lossy().into_owned();
    let reply =
        fa(&format!("tune --heads 1 --len 200 --dim 8 --seconds 0 --isa scalar --threads 1 --json={name}"));
    assert_eq!((reply.code, reply.err.as_str()), (0, ""));
    let text = std::fs::read_to_string(&file).expect("the file was written");
    std::fs::remove_file(&file).expect("it is ours");
    let lines: Value = serde_json::from_str(&text).expect("JSON");
    let lines = lines.as_array().expect("lines");
    assert!(lines.len() >= 3, "{text}");
    let mut tiles: Vec<_> = lines.iter().map(|line| line["tiles"].as_str().expect("tiles")).collect();
    tiles.sort_unstable();
    tiles.dedup();
    assert_eq!(tiles.len(), lines.len(), "each once: {text}");
    for line in lines {
        assert_eq!((&line["table"], &line["unit"]), (&json!("tune"), &json!("x")));
        assert!(line["figure"].as_f64().is_some_and(|x| x > 0.0), "{line}");
    }
}
