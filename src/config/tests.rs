//! Every mistake is told with its place, its key, what it is and what is allowed.

use super::*;
use std::os::unix::ffi::OsStringExt;

fn options() -> Options {
    Options { name: Some("alpha".into()), config: Some("/dev/null".into()), ..Options::default() }
}

/// Loads a file of this text; what comes back is the configuration, or the mistakes without the file's folder.
fn load_file(text: &[u8]) -> Result<Config, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.toml");
    std::fs::write(&path, text).unwrap();
    let options = Options { config: Some(path), name: None, ..options() };
    let variables = [("BLIXARD_NAME".into(), "alpha".into())];
    let prefix = format!("{}/", folder.path().display());
    Config::load(&options, variables).map_err(|m| m.iter().map(|m| m.to_string().replace(&prefix, "")).collect())
}

fn mistake_of_file(text: &str) -> String {
    match load_file(text.as_bytes()) {
        Ok(config) => panic!("{text}: {config:?}"),
        Err(mistakes) => {
            assert_eq!(mistakes.len(), 1, "{text}: {mistakes:?}");
            mistakes[0].clone()
        }
    }
}

fn load_flags(change: impl FnOnce(&mut Options)) -> Result<Config, String> {
    let mut options = options();
    change(&mut options);
    Config::load(&options, []).map_err(|m| m.to_string())
}

fn load_variables(variables: &[(&str, &str)]) -> Result<Config, String> {
    let variables = variables.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
    Config::load(&options(), variables).map_err(|m| m.to_string())
}

#[test]
fn defaults() {
    let config = load_flags(|_| ()).unwrap();
    assert_eq!((config.data.to_str(), config.mount.to_str()), (Some("/var/lib/blixard"), Some("/n/blixard")));
    assert_eq!(config.listen, [Dial::Unix("/run/blixard/sock".into())]);
    assert_eq!(config.images, Path::new("/var/lib/blixard/images"));
    assert_eq!((config.hypervisor, config.trace.level.as_str(), config.trace.json), (Hypervisor::Qemu, "info", false));
    assert_eq!(config.limits, Limits { memory_bytes: None, cpus: None, drift_max_ms: 500, log_keep: 100_000 });
    assert_eq!(config.lease, Lease { length_ms: 10_000, drift_percent: 20, grace_ms: 2_000 });
}

#[test]
fn all_keys_of_a_file() {
    let text = "name = 'beta'\ndata = '/d'\nmount = '/m'\nlisten = ['tcp!127.0.0.1!0', 'unix!/s']\n\
                insecure_listen = 'tcp!*!564'\n\
                hypervisor = 'simulated'\nimages = '/i'\n[trace]\nlevel = 'warn,blixard::fs=debug'\njson = true\n\
                [limits]\nmemory = '8G'\ncpus = 4\ndrift = '1s'\nlog_keep = 5000\n\
                [lease]\nlength = '5s'\ndrift = '2%'\ngrace = '1500ms'\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.toml");
    std::fs::write(&path, text).unwrap();
    let config = Config::load(&Options { config: Some(path.clone()), ..Options::default() }, []).unwrap();
    assert_eq!(config.name, "beta");
    assert_eq!(config.listen, [Dial::Tcp { host: "127.0.0.1".into(), port: 0 }, Dial::Unix("/s".into())]);
    assert_eq!(config.hypervisor, Hypervisor::Simulated);
    let limits = Limits { memory_bytes: Some(8 << 30), cpus: Some(4), drift_max_ms: 1_000, log_keep: 5_000 };
    assert_eq!(config.limits, limits);
    assert_eq!(config.lease, Lease { length_ms: 5_000, drift_percent: 2, grace_ms: 1_500 });
    assert!(config.trace.json);
    // Each key of the table was set by this file, and its place is known.
    for key in KEYS {
        assert!(matches!(config.source(key.name), Source::File { .. }), "{}", key.name);
    }
    let printed = config.print();
    let line = printed.lines().find(|line| line.starts_with("limits.cpus")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["limits.cpus", "4", &format!("{}:13:8", path.display())]);
}

#[test]
fn the_example_has_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/blixard.toml");
    let config = Config::load(&Options { config: Some(path), ..Options::default() }, []).unwrap();
    for key in KEYS {
        assert!(matches!(config.source(key.name), Source::File { .. }), "{}", key.name);
    }
    let defaults = load_flags(|_| ()).unwrap();
    assert_eq!((&config.data, &config.mount, &config.images), (&defaults.data, &defaults.mount, &defaults.images));
    assert_eq!((config.trace, config.hypervisor), (defaults.trace, defaults.hypervisor));
    assert_eq!(config.lease, defaults.lease);
}

#[test]
fn flags_go_before_variables_and_variables_before_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.toml");
    std::fs::write(&path, "name = 'file'\ndata = '/file'\nmount = '/file-m'\nlisten = ['unix!/file-s']\n").unwrap();
    let options = Options { config: Some(path), name: Some("flag".into()), ..Options::default() };
    let variables =
        [("BLIXARD_NAME", "env"), ("BLIXARD_DATA", "/env"), ("BLIXARD_LISTEN", "tcp!::1!1 tcp!localhost!2")];
    let config = Config::load(&options, variables.map(|(k, v)| (k.into(), v.into()))).unwrap();
    assert_eq!(
        (config.name.as_str(), config.data.to_str(), config.mount.to_str()),
        ("flag", Some("/env"), Some("/file-m"))
    );
    // A list replaces a list; the node's own socket is always there.
    let listen: Vec<_> = config.listen.iter().map(Dial::to_string).collect();
    assert_eq!(listen, ["unix!/env/sock", "tcp!::1!1", "tcp!localhost!2"]);
    assert_eq!(config.source("name"), Source::Flag("--name"));
    assert_eq!(config.source("data"), Source::Variable("BLIXARD_DATA".into()));
    assert_eq!(config.source("images"), Source::Default);
}

#[test]
fn the_file_may_be_named_by_a_variable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.toml");
    std::fs::write(&path, "name = 'beta'").unwrap();
    let variables = [("BLIXARD_CONFIG".into(), path.into_os_string())];
    assert_eq!(Config::load(&Options::default(), variables).unwrap().name, "beta");
    let said = Config::load(&Options::default(), [("BLIXARD_CONFIG".into(), "/nowhere/b.toml".into())]).unwrap_err();
    let expected = "BLIXARD_CONFIG: the configuration file /nowhere/b.toml can't be read: No such file or directory";
    assert!(said.to_string().starts_with(expected), "{said}");
}

#[test]
fn each_mistake_of_a_file() {
    let all = "name, data, mount, listen, insecure_listen, hypervisor, images, trace.level, trace.json, limits.memory, limits.cpus, \
               limits.drift, lease.length, lease.drift, lease.grace, limits.log_keep";
    for (text, said) in [
        ("name = 5", "b.toml:1:8: name: invalid value: it is an integer, and this key takes a name, as \"alpha\""),
        ("\n\n  name = 'A'", "b.toml:3:10: name: invalid name 'A': a name begins with a letter a to z or a digit"),
        ("name = '42'", "b.toml:1:8: name: invalid name '42': only digits would be a number; put a letter into it"),
        ("data = ''", "b.toml:1:8: data: invalid folder: it is empty"),
        ("data = 'x'", "b.toml:1:8: data: invalid folder 'x': in a file it must be absolute"),
        ("data = '/a'\ndata = '/b'", "b.toml:2:1: invalid TOML: duplicate key"),
        ("data = ", "b.toml:1:8: invalid TOML: "),
        ("data = [", "b.toml:1:9: invalid TOML: "),
        ("data = ['/x']", "b.toml:1:8: data: invalid value: it is a list, and this key takes a folder"),
        ("data = 1.5", "b.toml:1:8: data: invalid value: it is a float"),
        ("data = 2026-11-24", "b.toml:1:8: data: invalid value: it is a time"),
        ("data = { a = 1 }", "b.toml:1:8: data: invalid value: it is a section of keys"),
        ("mount = true", "b.toml:1:9: mount: invalid value: it is true or false"),
        (
            "data = '/x'\nmount = '/x'",
            "b.toml:1:8: data: invalid folder /x: it would be hidden by the tree on /x (mount)",
        ),
        (
            "mount = '/run'",
            "default: listen: invalid folder /run/blixard/sock: it would be hidden by the tree on /run (mount)",
        ),
        ("images = '/n/blixard/i'", "b.toml:1:10: images: invalid folder /n/blixard/i: it would be hidden"),
        ("listen = 'unix!/n/blixard/s'", "b.toml:1:10: listen: invalid folder /n/blixard/s: it would be hidden"),
        (
            "listen = [\n  'unix!/s',\n  7 ]",
            "b.toml:3:3: listen: invalid value: it is an integer, and this key takes a list",
        ),
        ("listen = ['unix!s']", "b.toml:1:11: listen: invalid folder 's': in a file it must be absolute"),
        ("listen = ['unix!/s', 'unix!/s']", "b.toml:1:10: listen: invalid dial string 'unix!/s': it is given twice"),
        (
            "listen = ['/s']",
            "b.toml:1:11: listen: invalid dial string '/s': there is no '!' in it; a dial string is as ",
        ),
        ("listen = ['tcp!127.0.0.1!65536']", "b.toml:1:11: listen: invalid dial string"),
        (
            "hypervisor = 'qemo'",
            "b.toml:1:14: hypervisor: invalid hypervisor 'qemo': did you mean 'qemu'? there are: qemu, simulated",
        ),
        ("trace = 'info'", "b.toml:1:9: trace: invalid value: it is a string, and [trace] is a section of keys"),
        ("[trace]\nlevel = 'inof'", "b.toml:2:9: trace.level: invalid level 'inof': did you mean 'info'?"),
        (
            "[trace]\njson = 'yes'",
            "b.toml:2:8: trace.json: invalid value: it is a string, and this key takes true or false",
        ),
        ("limits.memory = '1M'", "b.toml:1:17: limits.memory: invalid size '1M': it is from 32M to 1P"),
        ("limits.memory = '1E'", "b.toml:1:17: limits.memory: invalid size '1E': it is from 32M to 1P"),
        ("limits.memory = 'much'", "b.toml:1:17: limits.memory: invalid size 'much': a size is digits"),
        ("limits.cpus = 0", "b.toml:1:15: limits.cpus: invalid number '0': it is from 1 to 65536"),
        ("limits.cpus = -1", "b.toml:1:15: limits.cpus: invalid number '-1': it is from 1 to 65536"),
        (
            "limits.cpus = true",
            "b.toml:1:15: limits.cpus: invalid value: it is true or false, and this key takes a number",
        ),
        ("limits.log_keep = 10", "b.toml:1:19: limits.log_keep: invalid number '10': it is from 1000 to 10000000"),
        ("limits.drift = '0s'", "b.toml:1:16: limits.drift: invalid duration '0s': it is from 1ms to 1m"),
        ("lease.length = '999ms'", "b.toml:1:16: lease.length: invalid duration '999ms': it is from 1s to 10m"),
        ("lease.drift = '0%'", "b.toml:1:15: lease.drift: invalid difference '0%': it is from 1% to 100%"),
        ("lease.drift = '2'", "b.toml:1:15: lease.drift: invalid difference '2': it is from 1% to 100%"),
        ("lease.grace = '0s'", "b.toml:1:15: lease.grace: invalid duration '0s': it is from 1s to 10m"),
        (
            "limits.drift = 500",
            "b.toml:1:16: limits.drift: invalid value: it is an integer, and this key takes a duration",
        ),
        ("nmae = 'x'", &format!("b.toml:1:1: nmae: invalid key: did you mean 'name'? there are: {all}")),
        ("zzzzzz = 1", &format!("b.toml:1:1: zzzzzz: invalid key: there are: {all}")),
        ("[trcae]\nlevel = 'info'", "b.toml:1:2: trcae: invalid key: "),
        ("[trace]\nleval = 'info'", "b.toml:2:1: trace.leval: invalid key: did you mean 'trace.level'?"),
        ("level = 'info'", "b.toml:1:1: level: invalid key: did you mean 'trace.level'?"),
        (
            "[[trace]]\nlevel = 'info'",
            "b.toml:1:1: trace: invalid value: it is a list, and [trace] is a section of keys",
        ),
    ] {
        let mistake = mistake_of_file(text);
        assert!(mistake.starts_with(said), "{text:?}\n gave {mistake}\n want {said}");
    }
}

#[test]
fn numbers_of_every_base() {
    for (text, cpus) in [("0x10", 16), ("1_000", 1_000), ("+4", 4), ("0b11", 3), ("'8'", 8)] {
        assert_eq!(load_file(format!("limits.cpus = {text}").as_bytes()).unwrap().limits.cpus, Some(cpus), "{text}");
    }
    assert_eq!(load_file(b"limits.memory = 1073741824").unwrap().limits.memory_bytes, Some(1 << 30));
    let said = mistake_of_file("limits.cpus = 99999999999999999999999999");
    assert!(said.contains("invalid number '99999999999999999999999999'"), "{said}");
}

#[test]
fn files_that_are_no_text() {
    let mistakes = load_file(b"name = 'a'\n# \xff").unwrap_err();
    assert_eq!(mistakes, ["b.toml:2:3: invalid text: it is not UTF-8"]);
    assert!(load_file(&vec![b'#'; 300_000]).unwrap_err()[0].contains("it has more than 262144 bytes"));
    assert!(load_file(b"name = 'a\0b'").unwrap_err()[0].starts_with("b.toml:1:"));
    let said = load_flags(|o| o.config = Some("/dev".into())).unwrap_err();
    assert!(said.starts_with("--config: the configuration file /dev can't be read: Is a directory"), "{said}");
}

#[test]
fn all_mistakes_are_told_at_once() {
    let mistakes = load_file(b"name = 1\nlisten = ['x', 'y']\n[limits]\ncpus = 0\nmemmory = 1").unwrap_err();
    let starts: Vec<_> = mistakes.iter().map(|m| m.splitn(5, ':').take(4).collect::<String>()).collect();
    assert_eq!(
        starts,
        ["b.toml18 name", "b.toml211 listen", "b.toml216 listen", "b.toml48 limits.cpus", "b.toml51 limits.memmory"]
    );
    let lines = "x = 1\ny = [\nz = 1".replace('\n', " \n");
    assert!(load_file(lines.as_bytes()).unwrap_err().iter().all(|m| m.contains("invalid TOML")));
    let many: String = (0..30).map(|n| format!("key{n} = 1\n")).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.toml");
    std::fs::write(&path, many).unwrap();
    let said = load_flags(|o| o.config = Some(path)).unwrap_err();
    assert_eq!((said.lines().count(), said.lines().last()), (21, Some("and 10 more mistakes")));
}

#[test]
fn what_is_overridden_is_checked_too() {
    let said = load_file(b"name = 'B'").unwrap_err();
    assert!(said[0].starts_with("b.toml:1:8: name: invalid name 'B'"), "{said:?}");
}

#[test]
fn mistakes_of_variables_and_flags_name_them() {
    let said = load_variables(&[("BLIXARD_DATA", "")]).unwrap_err();
    assert!(said.starts_with("BLIXARD_DATA: data: invalid folder: it is empty"), "{said}");
    let said = load_variables(&[("BLIXARD_TRACE_LVEL", "info")]).unwrap_err();
    assert_eq!(
        said,
        "BLIXARD_TRACE_LVEL: invalid variable: there is none of this name; did you mean BLIXARD_TRACE_LEVEL?"
    );
    let said = load_variables(&[("BLIXARD_TRACE_JSON", "1")]).unwrap_err();
    assert_eq!(said, "BLIXARD_TRACE_JSON: trace.json: invalid value '1': it is true or false");
    assert!(load_variables(&[("BLIXARD_PROFILE", "dev"), ("BLIXARD", "unix!/s"), ("HOME", "/")]).is_ok());
    let odd = [("BLIXARD_DATA".into(), OsString::from_vec(vec![b'/', 0xff]))];
    assert_eq!(Config::load(&options(), odd).unwrap_err().to_string(), "BLIXARD_DATA: invalid value: it is not UTF-8");
    let said = load_flags(|o| o.hypervisor = Some("kvm".into())).unwrap_err();
    assert_eq!(said, "--hypervisor: hypervisor: invalid hypervisor 'kvm': there are: qemu, simulated");
    let said = load_flags(|o| o.name = Some("a/b".into())).unwrap_err();
    assert!(said.starts_with("--name: name: invalid name 'a/b'"), "{said}");
}

#[test]
fn only_loopback_is_listened_on() {
    for host in ["127.0.0.1", "127.8.8.8", "::1", "localhost", "::ffff:127.0.0.1"] {
        assert!(load_flags(|o| o.listen = vec![format!("tcp!{host}!0")]).is_ok(), "{host}");
    }
    for host in ["0.0.0.0", "*", "::", "10.0.0.1", "alpha", "localhost.example"] {
        let said = load_flags(|o| o.listen = vec![format!("tcp!{host}!564")]).unwrap_err();
        assert!(said.starts_with("--listen: listen: invalid dial string") && said.contains("only loopback"), "{said}");
    }
}

#[test]
fn relative_paths_of_flags_are_of_the_working_folder() {
    let here = std::env::current_dir().unwrap();
    let config = load_flags(|o| o.data = Some("./d".into())).unwrap();
    assert_eq!(config.data, here.join("d"));
    assert_eq!(config.listen, [Dial::Unix(here.join("d/sock"))]);
    let said = load_flags(|o| o.data = Some(format!("/{}", "d".repeat(120)))).unwrap_err();
    assert!(said.contains("give --listen unix!PATH with a shorter one"), "{said}");
    let said = load_flags(|o| o.listen = vec![format!("unix!{}", "d".repeat(107))]).unwrap_err();
    assert!(said.contains("and 107 are the most"), "{said}");
}

#[test]
fn machines_names_become_nodes_names() {
    for (host, name) in [
        ("alpha", Some("alpha")),
        ("Alpha.Example.ORG", Some("alpha")),
        ("my_host", Some("my-host")),
        ("42", Some("node-42")),
        ("-x-", Some("x")),
        ("(none)", Some("none")),
        ("", None),
        ("___", None),
    ] {
        assert_eq!(host_as_name(host).as_deref(), name, "{host}");
    }
    let long = host_as_name(&"7".repeat(80)).unwrap();
    assert_eq!(long.len(), name::NAME_BYTES_MAX);
}

#[test]
fn places_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let within = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(within("file"), "").unwrap();
    let config = load_flags(|o| {
        o.data = Some(within("new/data"));
        o.mount = Some(within("new/n"));
        o.images = Some(within("new/images"));
    })
    .unwrap();
    let said = config.check_places().unwrap_err().to_string();
    assert_eq!(said, format!("--images: images: not found: there is no folder {}", within("new/images")));
    let config = load_flags(|o| {
        o.data = Some(within("file/data"));
        o.mount = Some(within("n"));
        o.images = Some(folder.path().display().to_string());
        o.listen = vec![format!("unix!{}", within("file"))];
    })
    .unwrap();
    let said = config.check_places().unwrap_err().to_string();
    assert_eq!(said, format!("--data: data: invalid folder {}: {} is a file", within("file/data"), within("file")));
}

#[test]
fn an_ordinary_user_is_told_which_flags_to_give() {
    use rustix::{fs::Access, io::Errno};
    // As nobody: all can be looked at, /tmp alone can be written, and the images are in root's own folder.
    let nobody = |path: &Path, how: Access| match path.to_str().unwrap_or_default() {
        "/var/lib/blixard/images" => Err(Errno::ACCESS),
        "/" | "/tmp" | "/var" | "/var/lib" | "/run" if how == Access::EXISTS => Ok(()),
        "/tmp" => Ok(()),
        "/" | "/var" | "/var/lib" | "/run" => Err(Errno::ACCESS),
        _ => Err(Errno::NOENT),
    };
    let said = |config: &Config| places::check(config, &nobody).iter().map(Mistake::to_string).collect::<Vec<_>>();
    let advice = "; run it as root, or give folders of your own: --data ~/.local/share/blixard --mount ~/n/blixard \
                  --images ~/.local/share/blixard/images";
    let config = load_flags(|_| ()).unwrap();
    let expected = [
        "data: permission denied: /var/lib/blixard can't be made, because /var/lib can't be written",
        "mount: permission denied: /n/blixard can't be made, because / can't be written",
        "images: permission denied: /var/lib/blixard/images can't be read",
        "listen: permission denied: /run/blixard can't be made, because /run can't be written",
    ];
    assert_eq!(said(&config), expected.map(|e| format!("default: {e}{advice}")));
    let config = load_flags(|o| (o.data, o.mount) = (Some("/tmp/d".into()), Some("/tmp/m".into()))).unwrap();
    assert_eq!(said(&config), [format!("default: {}{advice}", expected[2])]);
    let config = load_flags(|o| (o.data, o.mount) = (Some("/var/lib".into()), Some("/tmp/m".into()))).unwrap();
    assert_eq!(said(&config)[0], "--data: data: permission denied: /var/lib can't be written");
}
