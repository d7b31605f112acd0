"""Checkpoints: conversion of the reference's files, and later facts, cards and publishing."""
