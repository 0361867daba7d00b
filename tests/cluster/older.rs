//! A node that reads no entries but those of the format before the newest one, and says so: what the release before this one was. It takes the
//! arguments of `blixard serve` that the lab gives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use blixard::config::{Config, Options};
use blixard::engine::state::ENTRY_FORMAT;
use blixard::serve::{Start, serve};

fn main() {
    let mut arguments = std::env::args().skip(1);
    assert_eq!(arguments.next().as_deref(), Some("serve"), "it is nothing but a node");
    let (mut options, mut start) = (Options::default(), Start { entry_format: ENTRY_FORMAT - 1, ..Start::default() });
    while let Some(flag) = arguments.next() {
        let value = arguments.next();
        match flag.as_str() {
            "--config" => options.config = value.map(Into::into),
            "--name" => options.name = value,
            "--data" => options.data = value,
            "--mount" => options.mount = value,
            "--hypervisor" => options.hypervisor = value,
            "--images" => options.images = value,
            "--join" => start.join = value,
            "--advertise" => start.advertise = value,
            other => panic!("{other} is not known here"),
        }
    }
    let config = Config::load(&options, std::env::vars_os()).expect("the configuration is right");
    if let Err(why) = serve(&config, &start) {
        eprintln!("older: {why}");
        std::process::exit(1);
    }
}
