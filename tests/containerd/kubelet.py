"""
The calls of a kubelet to containerd.
"""

import base64
import itertools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapshotter.setup.containerd import installed

from .processes import PATIENCE, PLUGIN, Containerd, CtrError

ID_MAP = {"container_id": 0, "host_id": 100_000, "length": 65_536}

_numbers = itertools.count()


def settings(release: Path, directory: Path, pause: str, runc: Path) -> str:
    """
    Return the CRI section in the configuration of containerd, with *pause* as the image of pods.
    """
    host = pause.partition("/")[0]
    registry = directory / "registries" / host
    registry.mkdir(parents=True)
    (registry / "hosts.toml").write_text(f'[host."http://{host}"]\n')
    images = runtime = "io.containerd.grpc.v1.cri"
    if one_plugin := installed(str(release / "containerd")).config == 2:
        # Here and not in the drop-in, because a drop-in would replace this section.
        image_settings = f'sandbox_image = "{pause}"\ncontainerd.snapshotter = "{PLUGIN}"\n'
    else:
        images, runtime = "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"
        image_settings = f'pinned_images.sandbox = "{pause}"\n'
    # Without restrict_oom_score_adj pods get a lower score than this process, for which it may lack the capability.
    return f"""
[plugins."{images}"]
{image_settings}
stats_collect_period = 1
registry.config_path = "{directory}/registries"
{"" if one_plugin else f'[plugins."{runtime}"]'}
restrict_oom_score_adj = true
cni.conf_dir = "{directory}/cni"
containerd.runtimes.runc.runtime_type = "io.containerd.runc.v2"
containerd.runtimes.runc.options.Root = "{directory}/runc"
containerd.runtimes.runc.options.BinaryName = "{runc}"
"""


class CriError(Exception):
    """
    The error of a call.
    """


@dataclass(frozen=True, slots=True)
class Pod:
    """
    A pod on the host's network.
    """

    id: str
    config: dict[str, Any]
    handler: str


class Kubelet:
    """
    Calls of the CRI.

    Args:
        client: The program of the directory ``cri``.
        directory: The directory of the containers' logs.
    """

    def __init__(self, client: Path, containerd: Containerd, directory: Path) -> None:
        self._client = client
        self._containerd = containerd
        self._directory = directory

    def call(self, method: str, **request: Any) -> dict[str, Any]:
        """
        Call *method* with *request*, and return the response.

        Raises:
            CriError: The call failed.
        """
        done = subprocess.run(
            [self._client, self._containerd.address, method],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=PATIENCE,
        )
        if done.returncode:
            raise CriError(f"{method}: {done.stderr.decode(errors='replace').strip()}")
        response: dict[str, Any] = json.loads(done.stdout)
        return response

    def answers(self) -> bool:
        """
        Return whether containerd serves the CRI and reaches the daemon.
        """
        try:
            self._containerd.ctr("snapshots", "ls")
            conditions = self.call("RuntimeService/Status")["status"]["conditions"]
        except (CtrError, CriError):
            return False
        return any(condition["type"] == "RuntimeReady" and condition["status"] for condition in conditions)

    def pull(self, reference: str, handler: str = "") -> None:
        """
        Pull an image, for the RuntimeClass of *handler*.
        """
        self.call("ImageService/PullImage", image={"image": reference, "runtime_handler": handler})

    def images(self) -> set[str]:
        """
        Return the names of the images.
        """
        listed = self.call("ImageService/ListImages")["images"]
        return {tag for image in listed for tag in image["repo_tags"]}

    def run_pod(self, name: str, *, host_users: bool = True, handler: str = "") -> Pod:
        """
        Start a pod.

        Args:
            handler: The handler of the pod's RuntimeClass.
            host_users: As in a pod's specification; if False, the pod has a user namespace.
        """
        namespaces: dict[str, Any] = {"network": "NODE"}
        if not host_users:
            namespaces["userns_options"] = {"mode": "POD", "uids": [ID_MAP], "gids": [ID_MAP]}
        config = {
            "metadata": {"name": name, "uid": f"{name}-{next(_numbers)}", "namespace": "tests"},
            "log_directory": str(self._directory / name),
            "linux": {
                "cgroup_parent": f"/{self._containerd.cgroup.name}",
                "security_context": {"namespace_options": namespaces},
            },
        }
        response = self.call("RuntimeService/RunPodSandbox", config=config, runtime_handler=handler)
        return Pod(response["pod_sandbox_id"], config, handler)

    def create_container(self, pod: Pod, image: str, *, volume: str = "") -> str:
        """
        Create a container that sleeps, and return its id.

        Args:
            volume: The image to mount at ``/volume``, if any.
        """
        namespaces = pod.config["linux"]["security_context"]["namespace_options"]
        maps = {"uidMappings": [ID_MAP], "gidMappings": [ID_MAP]} if "userns_options" in namespaces else {}
        mount = {"container_path": "/volume", "image": {"image": volume}, "readonly": True, **maps}
        config = {
            "metadata": {"name": "main", "attempt": next(_numbers)},
            "image": {"image": image, "runtime_handler": pod.handler},
            "command": ["sleep", "infinity"],
            "log_path": "main.log",
            "mounts": [mount] if volume else [],
            "linux": {"security_context": {"namespace_options": namespaces}},
        }
        response = self.call(
            "RuntimeService/CreateContainer", pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config
        )
        return str(response["container_id"])

    def start_container(self, pod: Pod, image: str, *, volume: str = "") -> str:
        """
        Create and start a container, and return its id.
        """
        container = self.create_container(pod, image, volume=volume)
        self.call("RuntimeService/StartContainer", container_id=container)
        return container

    def remove_container(self, container: str) -> None:
        """
        Stop a container and remove it.
        """
        self.call("RuntimeService/StopContainer", container_id=container)
        self.call("RuntimeService/RemoveContainer", container_id=container)

    def remove_pod(self, pod: str) -> None:
        """
        Stop the pod with the id *pod*, and remove it with its containers.
        """
        self.call("RuntimeService/StopPodSandbox", pod_sandbox_id=pod)
        self.call("RuntimeService/RemovePodSandbox", pod_sandbox_id=pod)

    def remove_everything(self) -> None:
        """
        Remove all pods, containers and images.
        """
        for pod in self.call("RuntimeService/ListPodSandbox")["items"]:
            self.remove_pod(pod["id"])
        for image in self.call("ImageService/ListImages")["images"]:
            self.call("ImageService/RemoveImage", image={"image": image["id"]})

    def running(self) -> set[str]:
        """
        Return the ids of the running containers.
        """
        listed = self.call("RuntimeService/ListContainers")["containers"]
        return {container["id"] for container in listed if container["state"] == "CONTAINER_RUNNING"}

    def shell(self, container: str, script: str) -> str:
        """
        Run *script* by a shell in a running container, and return its output.

        Raises:
            CriError: The script failed.
        """
        response = self.call("RuntimeService/ExecSync", container_id=container, cmd=["sh", "-c", script])
        if response["exit_code"]:
            raise CriError(f"{script}: {base64.b64decode(response['stderr']).decode()}")
        return base64.b64decode(response["stdout"]).decode()

    def written(self, container: str) -> int:
        """
        Return the bytes in the writable layer of a container, as containerd last measured them.
        """
        stats = self.call("RuntimeService/ContainerStats", container_id=container)["stats"]
        return int(stats["writable_layer"]["used_bytes"]["value"]) if stats["writable_layer"] else 0
