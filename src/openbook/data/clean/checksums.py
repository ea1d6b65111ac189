"""Check digits: what tells an account number from any other number. Each says whether a text of digits is right."""

from __future__ import annotations

import hashlib

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
# Characters of an IBAN by country (the SWIFT registry).
_IBAN = (
    "NO15 BE16 FK18 DK18 FI18 FO18 GL18 NL18 SD18 MK19 SI19 AT20 BA20 EE20 KZ20 LT20 LU20 XK20 MN20 CH21 "
    "HR21 LI21 LV21 BG22 BH22 CR22 DE22 GB22 GE22 IE22 ME22 RS22 VA22 AE23 GI23 IL23 IQ23 OM23 SO23 TL23 "
    "AD24 CZ24 ES24 MD24 PK24 RO24 SA24 SE24 SK24 TN24 VG24 LY25 PT25 ST25 IS26 TR26 BI27 DJ27 FR27 GR27 "
    "IT27 MC27 MR27 SM27 AL28 AZ28 BY28 CY28 DO28 GT28 HU28 LB28 NI28 PL28 SV28 BR29 EG29 PS29 QA29 UA29 "
    "JO30 KW30 MU30 YE30 MT31 SC31 LC32 RU33"
)
IBAN_LENGTHS = {country[:2]: int(country[2:]) for country in _IBAN.split()}


def luhn(digits: str) -> bool:
    """Payment cards (ISO/IEC 7812): every second digit from the right counts double, as the sum of its digits."""
    return sum(sum(divmod(int(d) * (1 + i % 2), 10)) for i, d in enumerate(reversed(digits))) % 10 == 0


def iban(text: str) -> bool:
    """Bank accounts (ISO 13616): the country's length, and remainder 1 by 97 with the first four characters last."""
    text = text.upper()
    return (
        IBAN_LENGTHS.get(text[:2]) == len(text) and int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1
    )


def bsn(digits: str) -> bool:
    """Dutch citizens: nine digits weighted 9 … 2, -1 sum to a multiple of 11."""
    weights = (9, 8, 7, 6, 5, 4, 3, 2, -1)
    return len(digits) == 9 and int(digits) > 0 and sum(map(_times, weights, digits)) % 11 == 0


def nhs(digits: str) -> bool:
    """Patients in the United Kingdom: nine digits weighted 10 … 2, then 11 minus the remainder by 11."""
    return len(digits) == 10 and int(digits) > 0 and sum(map(_times, range(10, 0, -1), digits)) % 11 == 0


def german_tax(digits: str) -> bool:
    """German taxpayers: eleven digits, check digit by ISO 7064 (mod 11, 10); one digit comes twice or thrice."""
    if len(digits) != 11 or digits[0] == "0" or max(map(digits[:10].count, digits[:10])) not in (2, 3):
        return False
    product = 10
    for digit in digits[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def dni(text: str) -> bool:
    """Spanish residents: eight digits, or X, Y or Z and seven, and a letter that is their remainder by 23."""
    number = text[:-1].upper().translate(str.maketrans("XYZ", "012"))
    return DNI_LETTERS[int(number) % 23] == text[-1].upper()


def cpf(digits: str) -> bool:
    """Brazilian taxpayers: two check digits, each by weights down to 2, and not one digit eleven times."""
    if len(digits) != 11 or len(set(digits)) == 1:
        return False
    checks = (sum(map(_times, range(n + 1, 1, -1), digits[:n])) * 10 % 11 % 10 for n in (9, 10))
    return all(check == int(digits[n]) for n, check in zip((9, 10), checks, strict=True))


def ssn(digits: str) -> bool:
    """Social security in the United States has no check digit, but areas, groups and serials that are never given."""
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def base58check(text: str) -> bool:
    """Bitcoin's first addresses: 25 bytes, the last four from the double SHA-256 of the others."""
    number = 0
    for character in text:
        number = number * 58 + BASE58.index(character)
    try:
        data = number.to_bytes(25, "big")
    except OverflowError:
        return False
    return hashlib.sha256(hashlib.sha256(data[:-4]).digest()).digest()[:4] == data[-4:]


def bech32(text: str) -> bool:
    """Bitcoin's newer addresses: a BCH code over the prefix and the data (BIP 173; 350 for the constant)."""
    prefix, _, data = text.lower().rpartition("1")
    values = [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix), *(BECH32.index(c) for c in data)]
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    return check in (1, 0x2BC830A3)


def _times(weight: int, digit: str) -> int:
    return weight * int(digit)
