//! Containers of podman and docker over our files: what programs show in them.

use anyhow::Result;
use lxcfs_tests::runtime::{check, docker, podman};

#[test]
fn a_container_of_podman_sees_itself() -> Result<()> {
    check("podman", podman::run)
}

#[test]
fn a_container_of_docker_sees_itself() -> Result<()> {
    check("docker", docker::run)
}
