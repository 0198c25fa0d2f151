//! What the commands answer.

use super::*;

fn fa(words: &str) -> Reply {
    run(words.split_whitespace().map(str::to_owned).collect())
}

/// The value of a field in an answer's JSON, as text; the answer must be valid.
fn field(reply: &Reply, name: &str) -> String {
    let text = reply.out.trim_end();
    let mut at = text.as_bytes();
    assert!(value(&mut at) && at.is_empty(), "no JSON: {text}");
    let (_, rest) =
        text.split_once(&format!("\"{name}\": ")).unwrap_or_else(|| panic!("no {name} in {text}"));
    let mut end = rest.as_bytes();
    assert!(value(&mut end));
    rest[..rest.len() - end.len()].trim_matches('"').to_owned()
}

/// Takes a value of JSON off (RFC 8259), as much of it as a program of integers and texts may write.
fn value(at: &mut &[u8]) -> bool {
    space(at);
    match at {
        [b'{' | b'[', ..] => {
            let (open, close) = (at[0], if at[0] == b'{' { b'}' } else { b']' });
            *at = &at[1..];
            space(at);
            let mut first = true;
            while at.first() != Some(&close) {
                let comma = first || take(at, b",");
                first = false;
                space(at);
                let named = open == b'[' || (string(at) && take(at, b":"));
                if !(comma && named && value(at)) {
                    return false;
                }
                space(at);
            }
            *at = &at[1..];
            true
        }
        [b'"', ..] => string(at),
        [b't', ..] => take(at, b"true"),
        [b'f', ..] => take(at, b"false"),
        _ => {
            let digits = at.iter().take_while(|c| c.is_ascii_digit() || **c == b'-').count();
            *at = &at[digits..];
            digits > 0
        }
    }
}

fn space(at: &mut &[u8]) {
    *at = at.trim_ascii_start();
}

fn take(at: &mut &[u8], word: &[u8]) -> bool {
    let Some(rest) = at.strip_prefix(word) else { return false };
    *at = rest;
    true
}

fn string(at: &mut &[u8]) -> bool {
    if !take(at, b"\"") {
        return false;
    }
    loop {
        match at {
            [b'"', rest @ ..] => {
                *at = rest;
                return true;
            }
            [b'\\', b'"' | b'\\', rest @ ..] => *at = rest,
            [b'\\', b'u', _, _, _, _, rest @ ..] => *at = rest,
            [c, rest @ ..] if *c >= 0x20 && *c != b'\\' => *at = rest,
            _ => return false,
        }
    }
}

#[test]
fn json_escapes_what_must_be() {
    let text = Json::from("a \"b\" \\ \n").to_string();
    assert_eq!(text, r#""a \"b\" \\ \u000a""#);
    let list =
        Json::Object(vec![("x", Json::from(vec![1usize, 2])), ("y", Json::List(vec![])), ("z", true.into())]);
    assert_eq!(list.to_string(), r#"{"x": [1, 2], "y": [], "z": true}"#);
    assert!(value(&mut list.to_string().as_bytes()));
    assert!(!value(&mut &b"{\"x\" 1}"[..]) && !value(&mut &b"[1 2]"[..]) && !value(&mut &b"\"\n\""[..]));
}

#[test]
fn info_knows_the_machine() {
    let reply = fa("info --json --threads 3");
    assert_eq!((reply.code, reply.err.as_str()), (0, ""));
    assert_eq!(field(&reply, "version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(field(&reply, "threads"), "3");
    // Whatever the machine, plain code runs on it and takes every type; and all shapes get a plan.
    let kernels = field(&reply, "kernels");
    assert!(kernels.contains(r#""isa": "scalar", "prefill": "f32""#), "{kernels}");
    assert!(
        kernels.ends_with(r#""kv_types": ["f32", "f16", "bf16", "i8", "q8_0"], "allowed": true}]"#),
        "{kernels}"
    );
    assert_eq!(field(&reply, "plans").matches("\"shape\"").count(), info::shapes().len());
    let text = fa("info").out;
    for word in ["CPU ", "caches ", "scalar", "prefill", "decode", "workspace"] {
        assert!(text.contains(word), "no {word} in {text}");
    }
}

#[test]
fn check_explains_prompts_and_generation() {
    let prompt = fa("check --heads 32/8 --len 512 --dim 128 --causal --threads 2 --json");
    assert_eq!((prompt.code, field(&prompt, "accepted").as_str()), (0, "true"));
    assert_eq!(field(&prompt, "path"), "prefill");
    assert_eq!(field(&prompt, "kv_bytes"), (2 * 8 * 512 * 128 * 4).to_string());
    assert_eq!(field(&prompt, "threads"), "2");
    let token =
        fa("check --heads 32/8 --len-q 1 --len-kv=8192 --dim 128 --kv q8_0 --page 16 --threads 2 --json");
    assert_eq!(field(&token, "path"), "decode");
    assert_eq!(field(&token, "kv_bytes"), (2 * 8 * 8192 * 4 * 34).to_string());
    let bytes = |name| field(&token, name).parse::<usize>().expect("a number");
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
    assert_eq!((field(&reply, "isa"), field(&reply, "family")), ("scalar".to_owned(), "f32".to_owned()));
    assert_eq!((field(&reply, "rows"), field(&reply, "keys")), ("32".to_owned(), "64".to_owned()));
    for known in check::KNOWN {
        assert!(
            words.contains(known.name)
                || known.name.starts_with("--len")
                || ["--causal", "--page"].contains(&known.name)
        );
    }
    for scales in ["tensor", "head", "token", "channel"] {
        assert_eq!(fa(&format!("check --dtype i8 --scales {scales}")).code, 0);
    }
}

#[test]
fn check_says_what_is_refused_and_why() {
    let reply = fa("check --heads 5/2 --json");
    assert_eq!((reply.code, field(&reply, "status").as_str()), (1, "FA_ERR_SHAPE"));
    assert!(field(&reply, "why").contains("heads"), "{}", reply.out);
    let reply = fa("check --dim 33 --kv q8_0");
    assert_eq!(reply.code, 1);
    assert!(reply.out.starts_with("refused, FA_ERR_"), "{}", reply.out);
    for (words, status) in [
        ("--softcap -1", "FA_ERR_SOFTCAP"),
        ("--window -2", "FA_ERR_WINDOW"),
        ("--dim 0", "FA_ERR_ZERO_EXTENT"),
        ("--len -1", "FA_ERR_SHAPE"),
        ("--heads 1 --len 4611686018427387904", "FA_ERR_OVERFLOW"),
    ] {
        let reply = fa(&format!("check {words} --json"));
        assert_eq!((reply.code, field(&reply, "status").as_str()), (1, status), "{words}");
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
        "bench seconds=-1",
    ] {
        let reply = fa(words);
        assert_eq!((reply.code, reply.out.as_str()), (2, ""), "{words}");
        assert!(reply.err.contains("fa"), "{words}: {}", reply.err);
    }
    assert!(fa("check --dtype f64").err.contains("none of f32, f16, bf16, i8, q8_0"));
}

#[test]
fn every_command_has_help() {
    for (words, word) in [
        ("help", "usage: fa info"),
        ("--help", "fa bench"),
        ("info --help", "--threads N"),
        ("check -h", "--heads N/KV"),
        ("bench --help", "floors|layers"),
    ] {
        let reply = fa(words);
        assert_eq!((reply.code, reply.err.as_str()), (0, ""), "{words}");
        assert!(reply.out.contains(word), "{words}: {}", reply.out);
    }
    assert_eq!(fa("--version").out, format!("fa {}\n", env!("CARGO_PKG_VERSION")));
}

/// The benchmark itself, on a shape that takes no time, into a file.
#[test]
fn bench_measures() {
    let file = std::env::temp_dir().join(format!("fa-bench-{}.json", std::process::id()));
    let reply = fa(&format!("bench heads=1 len=8 dim=8 seconds=0 isa=scalar json={}", file.display()));
    assert_eq!(reply.code, 0, "{}", reply.err);
    let text = std::fs::read_to_string(&file).expect("the file was written");
    std::fs::remove_file(&file).expect("it is ours");
    assert!(text.contains(r#""shape":"1 x 8 x 8 x 8""#) && text.contains(r#""isa":"scalar""#), "{text}");
    assert_eq!(fa("bench heads=1 len=8 dim=8 seconds=0 isa=scalar json=/nonexistent/x").code, 1);
}
