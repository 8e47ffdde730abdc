"""What people may send, typed. Actions judge the values; forms only read them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from accounts.models import Role


class DeployForm(forms.Form):
    """percent: the share of the traffic to enter with; empty leaves it to the action."""

    endpoint = forms.CharField(max_length=64, required=False)
    replicas = forms.IntegerField(min_value=1, max_value=64, initial=1)
    device = forms.CharField(max_length=16, required=False)
    percent = forms.DecimalField(min_value=Decimal(0), max_value=Decimal(100), decimal_places=2, required=False)
    access = forms.ChoiceField(choices=[("key", "API key"), ("public", "Public")], required=False)


class KeyForm(forms.Form):
    """endpoints: names, none for all of the team. days: until it expires; empty for never. Rates: empty for no bound."""

    name = forms.CharField(max_length=100)
    team = forms.SlugField(max_length=64)
    role = forms.ChoiceField(choices=Role.choices)
    days = forms.IntegerField(min_value=1, max_value=3650, required=False)
    requests_per_s = forms.FloatField(min_value=0, required=False)
    rows_per_s = forms.FloatField(min_value=0, required=False)


class RatesForm(forms.Form):
    """What a key may send a second; empty for no bound."""

    requests_per_s = forms.FloatField(min_value=0, required=False)
    rows_per_s = forms.FloatField(min_value=0, required=False)


class WebhookForm(forms.Form):
    """events come as a list beside it, none for all."""

    url = forms.CharField(max_length=1000)
    team = forms.SlugField(max_length=64)


class PersonForm(forms.Form):
    username = forms.CharField(max_length=150)
    email = forms.EmailField(required=False)
    password = forms.CharField(max_length=1000, strip=False)
    team = forms.SlugField(max_length=64, required=False)
    role = forms.ChoiceField(choices=[("", ""), *Role.choices], required=False)


def complain(request: HttpRequest, form: forms.Form, back: str) -> HttpResponse:
    """Says what is wrong with each field and goes back."""
    said = [f"{name}: {' '.join(map(str, errors))}" for name, errors in form.errors.items()]
    messages.error(request, " ".join(said))
    return redirect(back)


def whole_number(text: Any, default: int = 0) -> int:
    """`text` as a small number, or `default`."""
    words = str(text or "")
    return int(words) if words.isascii() and words.isdigit() and len(words) < 10 else default
