//! Tests of groups that parameters join by name.
#![allow(clippy::unwrap_used)]

use lion::{Dtype, Error, Lion, LionBuilder, Overrides, ParamSpec};

fn decay(weight_decay: f64) -> Overrides {
    Overrides::new().weight_decay(weight_decay)
}

/// Returns a builder with a group of the layer `head`, and one of all biases.
fn builder() -> LionBuilder {
    Lion::builder()
        .weight_decay(0.5)
        .group("head", decay(0.25), |name| name.starts_with("head."))
        .group("biases", decay(0.0), |name| name.ends_with(".bias"))
}

/// Registers parameters under these names, and returns the group and the weight decay of each.
fn register(lion: &mut Lion, names: &[&str]) -> Vec<(Option<String>, f64)> {
    let info = |name: &&str| {
        let spec = ParamSpec::new(*name, 4, Dtype::F32);
        let handle = lion.register(spec).unwrap();
        let info = lion.info(handle).unwrap();
        (info.group.map(str::to_owned), info.hyper.weight_decay)
    };
    names.iter().map(info).collect()
}

#[test]
fn a_parameter_joins_the_first_group_that_contains_its_name() {
    let mut lion = builder().build().unwrap();
    let names: Vec<&str> = lion.groups().iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["head", "biases"]);
    let groups = register(
        &mut lion,
        &["body.weight", "body.bias", "head.weight", "head.bias"],
    );
    let head = (Some("head".to_owned()), 0.25);
    let biases = (Some("biases".to_owned()), 0.0);
    assert_eq!(groups, [(None, 0.5), biases, head.clone(), head]);
}

#[test]
fn the_group_of_a_specification_has_precedence() {
    let mut lion = builder().build().unwrap();
    lion.add_group("named", decay(0.75)).unwrap();
    let spec = ParamSpec::new("head.bias", 4, Dtype::F32);
    let head = lion.register(spec.group("named")).unwrap();
    assert_eq!(lion.info(head).unwrap().group, Some("named"));
    // A group that names its parameters one by one contains no others.
    assert_eq!(register(&mut lion, &["named"]), [(None, 0.5)]);
    // A group that is added later contains parameters that are registered after it.
    lion.add_group_by_name("all", decay(0.125), |_| true)
        .unwrap();
    let all = (Some("all".to_owned()), 0.125);
    assert_eq!(register(&mut lion, &["other"]), [all]);
    // An unknown group is an error, also for a name that a group contains.
    let spec = ParamSpec::new("body.bias", 4, Dtype::F32).group("unknown");
    let error = lion.register(spec).unwrap_err();
    assert!(matches!(error, Error::UnknownGroup { group } if group == "unknown"));
    assert_eq!(lion.parameters().len(), 3);
}

#[test]
fn a_group_keeps_choosing_after_a_copy_a_load_and_a_change() {
    let biases = |lion: &mut Lion, name, decay| {
        let expected = (Some("biases".to_owned()), decay);
        assert_eq!(register(lion, &[name]), [expected]);
    };
    let mut lion = builder().build().unwrap();
    biases(&mut lion, "a.bias", 0.0);
    biases(&mut lion.try_clone().unwrap(), "b.bias", 0.0);

    // The saved run has other groups, which come first, and another decay in the group of biases.
    let mut saved = Lion::builder().build().unwrap();
    saved.add_group("other", decay(0.75)).unwrap();
    saved.add_group("biases", decay(0.125)).unwrap();
    let spec = ParamSpec::new("a.bias", 4, Dtype::F32).group("biases");
    saved.register(spec).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.lion");
    saved.save(&path).unwrap();
    lion.load(&path).unwrap();
    biases(&mut lion, "b.bias", 0.125);

    lion.configure_group("biases", decay(1.0)).unwrap();
    biases(&mut lion, "c.bias", 1.0);
}

#[test]
fn a_shard_joins_the_group_of_the_whole_parameter() {
    let mut lion = builder().build().unwrap();
    let whole = ParamSpec::new("head.weight", 1024, Dtype::F32);
    let shard = lion.register(whole.cut(512..1024)).unwrap();
    assert_eq!(lion.info(shard).unwrap().group, Some("head"));
}

#[test]
fn a_builder_refuses_groups_that_are_not_valid() {
    let message = |builder: LionBuilder| builder.build().unwrap_err().to_string();
    let twice = builder().group("head", decay(0.0), |_| true);
    assert_eq!(message(twice), "group `head` already exists");
    let unnamed = builder().group("", decay(0.0), |_| true);
    assert!(matches!(unnamed.build(), Err(Error::EmptyName)));
    let negative = builder().group("all", decay(-1.0), |_| true);
    let text = message(negative);
    assert!(
        text.starts_with("group `all`: weight_decay is -1"),
        "{text}"
    );
}

#[test]
fn the_debug_output_of_a_builder_lists_its_groups() {
    let text = format!("{:?}", builder());
    assert!(text.contains("head") && text.contains("biases"), "{text}");
}
