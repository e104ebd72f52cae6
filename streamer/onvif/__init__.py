"""Cameras that speak ONVIF: finding them on the network, reading their profiles and stream addresses."""

from streamer.onvif.device import CameraDescription, CameraProfile, OnvifAddress, read_camera
from streamer.onvif.discovery import FoundDevice, discover_devices

__all__ = ["CameraDescription", "CameraProfile", "FoundDevice", "OnvifAddress", "discover_devices", "read_camera"]
